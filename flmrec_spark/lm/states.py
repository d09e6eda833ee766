"""What goes into a segmented model and what it knows of users and items apart from each other.

Shapes: B users, P user tokens, N items, S item tokens, T tokens of either, D hidden, H heads, K key-value heads, E size
of a head, Q item tokens that are computed on: all S, or the score token alone in the last layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flmrec_spark.lm.token_block import TokenBlock


@dataclass(frozen=True)
class Segment:
    """B segments as the model reads them: ids (B, T), -1 for a collaborative token, lengths (B,), factors (B, ..)."""

    ids: Tensor
    lengths: Tensor
    factors: Tensor | None = None

    @classmethod
    def of(cls, block: TokenBlock, device: torch.device | str) -> Segment:
        """A block on a device."""
        factors = None if block.factors is None else torch.from_numpy(block.factors).to(device)
        ids = torch.from_numpy(block.ids).to(device, torch.long)
        return cls(ids, torch.from_numpy(block.lengths).to(device), factors)

    @classmethod
    def of_one(cls, ids: list[int], factors: npt.NDArray[np.float32] | None, device: torch.device | str) -> Segment:
        """One segment (T,) with its factors (F,)."""
        own = None if factors is None else torch.from_numpy(factors[None]).to(device)
        return cls(torch.tensor([ids], device=device), torch.tensor([len(ids)], device=device), own)

    def take(self, rows: Tensor) -> Segment:
        """Some of the rows."""
        return Segment(self.ids[rows], self.lengths[rows], None if self.factors is None else self.factors[rows])

    def repeated(self, n: int) -> Segment:
        """One row n times."""
        factors = None if self.factors is None else self.factors.expand(n, -1)
        return Segment(self.ids.expand(n, -1), self.lengths.expand(n), factors)


@dataclass(frozen=True)
class UserStates:
    """Everything of B users that an item needs."""

    pooled: Tensor  # (B, D)
    keys: list[Tensor]  # per joined layer (B, K, P, E)
    values: list[Tensor]  # per joined layer (B, K, P, E)
    hidden_mask: Tensor  # (B, P), true where padded


@dataclass(frozen=True)
class ItemStates:
    """Everything of N items that no user changes: the join layer's input and the item's own part of its attention."""

    hidden: Tensor  # (N, Q, D): residual input of the join layer; with two towers the last hidden state, Q = 1
    query: Tensor  # (N, H, Q, E), scaled: a logit is query . key
    own: Tensor  # (N, H, Q, E): attention of the item to itself
    own_lse: Tensor  # (N, H, Q): its log-sum-exp; -inf where the item's own tokens are no keys, as in T5
    hidden_mask: Tensor  # (N, S), true where padded

    def take(self, index: Tensor) -> ItemStates:
        """Some of the items."""
        hidden, query, own, own_lse, mask = (part[index] if len(part) else part for part in self.parts())
        return ItemStates(hidden, query, own, own_lse, mask)

    def compact(self) -> ItemStates:
        """The same without what its parts are views of: a score token's state would keep those of all tokens alive."""
        hidden, query, own, own_lse, mask = (part.contiguous() for part in self.parts())
        return ItemStates(hidden, query, own, own_lse, mask)

    def padded(self, n_tokens: int, *, keeps_tokens: bool) -> ItemStates:
        """As if the items had been encoded with more padding: S = n_tokens, and Q too where every token is kept."""
        n_more = n_tokens - self.hidden_mask.shape[1]
        pad = nn.functional.pad
        mask = pad(self.hidden_mask, (0, n_more), value=True)
        if not keeps_tokens:
            return ItemStates(self.hidden, self.query, self.own, self.own_lse, mask)
        hidden, query, own = (pad(part, (0, 0, 0, n_more)) for part in (self.hidden, self.query, self.own))
        return ItemStates(hidden, query, own, pad(self.own_lse, (0, n_more)), mask)

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.hidden, self.query, self.own, self.own_lse, self.hidden_mask


def concatenated(states: Sequence[ItemStates]) -> ItemStates:
    """Items of several encodings, in their order."""
    return ItemStates(*[torch.cat(parts) for parts in zip(*[one.parts() for one in states], strict=True)])


@dataclass(frozen=True)
class ItemPart:
    """The catalogue as the kernel reads it: for a last-layer join heads come first and the query is scaled."""

    tokens: TokenBlock
    states: ItemStates | None  # None for `join: full`
    bias: npt.NDArray[np.float64]  # (N,)
