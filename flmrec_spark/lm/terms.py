"""Collaborative factors in a training step of the language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flmrec_spark.lm.collaborative import ItemFactors


class Terms(nn.Module):
    """What collaborative factors add to the logits of a step, and what the segments' tokens show of them.

    In training the factors of a share of the users and of the items are hidden, as those of new ones are. They do not
    train with the language model, which learns what they leave.

    Args:
      items: factors of the catalogue; None for a training without factors.
    """

    def __init__(self, items: ItemFactors | None, *, hidden_share: float) -> None:
        super().__init__()
        self.spans = {} if items is None else items.spans
        self.hidden_share = hidden_share
        for name in ("vectors", "offsets", "unknown"):
            value = torch.zeros(0) if items is None else torch.from_numpy(getattr(items, name))
            self.register_buffer(name, value, persistent=False)

    def shown(self, tastes: Tensor | None, distinct: Tensor) -> Shown:
        """Tastes (B, F) of the users, places (M,) of the distinct items."""
        if tastes is None or not self.spans:
            return Shown({}, None, None, None)
        users, items, offsets = tastes, self.vectors[distinct], self.offsets[distinct]  # type: ignore[index]
        if self.training and self.hidden_share > 0:
            users = users * (torch.rand(len(users), 1, device=users.device) >= self.hidden_share)
            is_shown = torch.rand(len(items), 1, device=items.device) >= self.hidden_share
            items, offsets = items * is_shown, torch.where(is_shown, offsets, self.unknown)  # type: ignore[arg-type]
        return Shown(self.spans, users, items, offsets)


@dataclass(frozen=True)
class Shown:
    """Factors of the users (B, F) and of the distinct items (M, F), as a step sees them."""

    spans: Mapping[str, tuple[int, int]]
    users: Tensor | None
    items: Tensor | None
    offsets: Tensor | None  # (M, kinds)

    def term(self, kind: str, grid: Tensor) -> Tensor | float:
        """(B, G + K) of the items grid (B, G + K)."""
        if kind not in self.spans or self.users is None or self.items is None or self.offsets is None:
            return 0.0
        start, end = self.spans[kind]
        every = self.users[:, start:end] @ self.items[:, start:end].T + self.offsets[:, list(self.spans).index(kind)]
        return every.gather(1, grid)
