"""Items as the language model sees them, to tell how alike two of them are.

An item's vector is its state below the join, which every process has mapped into its memory anyway: of the score
token where that alone is kept, else the mean over the item's tokens. States of one model all point much the same way,
so the mean of the catalogue is taken away first (Mu and Viswanath, ICLR'18).

Shapes: N items, P of them asked, Q tokens kept, D hidden.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.reranking import in_steps

_BLOCK = 4096  # items whose vectors are added up at once, and tokens whose states are looked at together


class ItemVectors:
    """`reranking.Vectors` of a scorer's items. Keeps a mean and no vector.

    Args:
      scorer: of N items; not of `join: full`, which has no states.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        states = scorer.items.states
        assert states is not None
        n_tokens = states.hidden_mask.shape[1] if scorer.model.keeps_tokens else 1
        self._step = max(1, _BLOCK // n_tokens)  # items
        n_items = len(scorer.items.tokens)
        blocks = range(0, n_items, _BLOCK)
        sums = [self._plain(np.arange(at, min(at + _BLOCK, n_items))).sum(axis=0) for at in blocks]
        self.mean = np.sum(sums, axis=0) / max(1, n_items)

    def of(self, items: Any) -> Any:
        """(P, D) as `reranking.in_steps`."""
        return in_steps(self._plain(items) - self.mean)

    def _plain(self, items: Any) -> Any:
        starts = range(0, max(1, len(items)), self._step)
        return np.concatenate([self._means(items[at : at + self._step]) for at in starts])

    @torch.inference_mode()
    def _means(self, items: Any) -> Any:
        hidden, is_padding = self.scorer.item_hidden(items)
        kept = (~is_padding).double()[..., None]  # (P, Q, 1)
        return ((hidden * kept).sum(1) / kept.sum(1)).cpu().numpy()
