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
from torch import Tensor

from flmrec_spark.lm.model import ItemStates
from flmrec_spark.reranking import in_steps

_BLOCK = 4096  # items of which a mean is made at once


class ItemVectors:
    """`reranking.Vectors` of a scorer's items. Keeps a mean and no vector.

    Args:
      states: of N items, as a scorer keeps them; not of `join: full`, which has none.
    """

    def __init__(self, states: ItemStates) -> None:
        self.states = states
        blocks = range(0, len(states.hidden), _BLOCK)
        sums = [self._plain(np.arange(at, min(at + _BLOCK, len(states.hidden)))).sum(axis=0) for at in blocks]
        self.mean = np.sum(sums, axis=0) / max(1, len(states.hidden))

    def of(self, items: Any) -> Any:
        """(P, D) as `reranking.in_steps`."""
        return in_steps(self._plain(items) - self.mean)

    @torch.inference_mode()
    def _plain(self, items: Any) -> Any:
        index = torch.from_numpy(items).to(self.states.hidden.device)
        hidden: Tensor = self.states.hidden[index].double()
        if hidden.dim() == 3 and hidden.shape[1] == 1:
            hidden = hidden[:, 0]
        elif hidden.dim() == 3:
            kept = (~self.states.hidden_mask[index]).double()[..., None]  # (P, Q, 1)
            hidden = (hidden * kept).sum(1) / kept.sum(1)
        return hidden.cpu().numpy()
