"""Collaborative factors in a training step of the language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from flmrec_spark.lm.collaborative import RATING, Floats, ItemFactors
from flmrec_spark.lm.text_factors import Learned


class Terms(nn.Module):
    """What collaborative factors add to the logits of a step, and what the segments' tokens show of them.

    In training the factors of a share of the users and of the items are hidden, as those of new ones are: of a hidden
    user stands what the profile says, and popularity; of a hidden item what its text says, and its bias term is left
    out. The factors do not train with the language model, which learns what they leave.

    Args:
      items: factors of the catalogue; None for a training without factors.
      texts: what the text of each of these items says; None: zeros, and the offsets of an unknown item.
    """

    def __init__(self, items: ItemFactors | None, *, hidden_share: float, texts: Learned | None = None) -> None:
        super().__init__()
        self.spans = {} if items is None else items.spans
        self.hidden_share = hidden_share
        arrays = dict[str, Floats]()
        if items is not None:
            self.register_buffer("is_profile", torch.from_numpy(items.is_profile), persistent=False)
            self.register_buffer("unmet", torch.from_numpy(np.array(items.unmet)), persistent=False)
            arrays = {"vectors": items.vectors, "offsets": items.offsets}
            hidden = np.zeros_like(items.vectors), np.broadcast_to(items.unknown, items.offsets.shape)
            arrays["hidden_vectors"], arrays["hidden_offsets"] = (
                hidden if texts is None else (texts.vectors, texts.offsets)
            )
        for name, value in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.array(value, dtype=np.float32)), persistent=False)

    def shown(self, tastes: Tensor | None, distinct: Tensor) -> Shown:
        """Tastes (B, F) of the users, places (M,) of the distinct items."""
        if tastes is None or not self.spans:
            return Shown({}, None, None, None, None)
        users, items, offsets = tastes, self.vectors[distinct], self.offsets[distinct]  # type: ignore[index]
        if not self.training or self.hidden_share == 0:
            return Shown(self.spans, users, items, offsets, None)
        is_met = torch.rand(len(users), 1, device=users.device) >= self.hidden_share
        users = torch.where(is_met | self.is_profile, users, self.unmet)  # type: ignore[operator, arg-type]
        is_shown = torch.rand(len(items), 1, device=items.device) >= self.hidden_share
        items = torch.where(is_shown, items, self.hidden_vectors[distinct])  # type: ignore[index]
        offsets = torch.where(is_shown, offsets, self.hidden_offsets[distinct])  # type: ignore[index]
        return Shown(self.spans, users, items, offsets, is_shown[:, 0])


@dataclass(frozen=True)
class Shown:
    """Factors of the users (B, F) and of the distinct items (M, F), as a step sees them."""

    spans: Mapping[str, tuple[int, int]]
    users: Tensor | None
    items: Tensor | None
    offsets: Tensor | None  # (M, kinds)
    is_shown: Tensor | None  # (M,) false for an item that is hidden; None: all are shown

    def bias_is_shown(self, grid: Tensor) -> Tensor | None:
        """(B, G + K), false where the bias term of an item is hidden with its factors; None where it is not theirs."""
        return None if self.is_shown is None or RATING not in self.spans else self.is_shown[grid]

    def term(self, kind: str, grid: Tensor) -> Tensor | float:
        """(B, G + K) of the items grid (B, G + K)."""
        if kind not in self.spans or self.users is None or self.items is None or self.offsets is None:
            return 0.0
        start, end = self.spans[kind]
        offsets = self.offsets[:, list(self.spans).index(kind)]
        with torch.autocast(self.users.device.type, enabled=False):  # in float32, as wherever they are served
            every = self.users[:, start:end] @ self.items[:, start:end].T + offsets
        return every.gather(1, grid)
