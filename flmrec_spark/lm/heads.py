"""What reads a logit off the last hidden states: logit = w1 . x + w2 . u + s x . u / D + b."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Head(nn.Module):
    """Hidden states -> logit; starts at 0 but for the dot product."""

    def __init__(self, hidden: int, *, dot: float) -> None:
        super().__init__()
        self.item_weight = nn.Parameter(torch.zeros(hidden))
        self.user_weight = nn.Parameter(torch.zeros(hidden))
        self.dot = nn.Parameter(torch.tensor(dot))
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, item: Tensor, user: Tensor) -> Tensor:
        """x (.., D) and u (.., D), broadcast -> logit (..), float32."""
        with torch.autocast(item.device.type, enabled=False):  # a logit of 8 bits could not tell items apart
            item, user = item.float(), user.float()
            linear = item @ self.item_weight + user @ self.user_weight
            return linear + self.dot * (item * user).mean(-1) + self.offset

    def of_user(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """The same as a vector (D,) and a number, as it is linear in x: logit = x . vector + number; pooled (D,)."""
        vectors, numbers = self.of_users(pooled[None])
        return vectors[0], numbers[0]

    def of_users(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """As `of_user` for many: pooled (B, D) -> vectors (B, D) and numbers (B,), float32."""
        pooled = pooled.float()
        return self.item_weight + self.dot * pooled / pooled.shape[-1], pooled @ self.user_weight + self.offset

    @torch.no_grad()
    def start(self, weight: Tensor, offset: float) -> None:
        """Makes the untrained logit weight . x + offset, weight (D,): no other term counts."""
        self.item_weight.copy_(weight)
        self.user_weight.zero_()
        self.dot.zero_()
        self.offset.fill_(offset)
