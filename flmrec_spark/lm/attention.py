"""The attention of a last-layer join: each item's score token to the keys of one user, its own part merged in.

Two forms of the same: `TorchAttention` runs on every device, `NativeAttention` is the kernel of `kernel.c`, one
pass through the first cache for what torch does in eight passes through memory.

Shapes: N items, T items of a block, P user tokens, D = H * E, H heads.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from flmrec_spark.lm.model import ItemStates
from flmrec_spark.lm.native import Kernel


class Attention(Protocol):
    def items(self, states: ItemStates) -> ItemStates:
        """States of N items as `SegmentedModel` gives them -> as `attend` reads them; only the score token is kept."""
        ...

    def take(self, states: ItemStates, index: Tensor) -> ItemStates:
        """Some of the items, in the order of the index."""
        ...

    def user(self, keys: Tensor, values: Tensor) -> Any:
        """Keys and values (H, P, E) of one user -> as `attend` reads them."""
        ...

    def attend(self, states: ItemStates, user: Any, block: slice) -> Tensor:
        """A block of the items -> (T, D)."""
        ...


class TorchAttention:
    """Plain products and a softmax. States: query (H, N, E), own (H, N, E), own_lse (H, N)."""

    def items(self, states: ItemStates) -> ItemStates:
        return _heads_first(states)

    def take(self, states: ItemStates, index: Tensor) -> ItemStates:
        chosen = (states.hidden[index], states.query[:, index], states.own[:, index], states.own_lse[:, index])
        return ItemStates(*chosen, states.hidden_mask)

    def user(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return keys, values

    def attend(self, states: ItemStates, user: tuple[Tensor, Tensor], block: slice) -> Tensor:
        keys, values = user
        logits = torch.bmm(states.query[:, block], keys.transpose(1, 2)).float()  # (H, T, P)
        own_logit = states.own_lse[:, block]  # (H, T)
        top = torch.maximum(logits.amax(-1), own_logit)
        weights = logits.sub_(top[..., None]).exp_()
        own_weight = (own_logit - top).exp_()
        total = weights.sum(-1).add_(own_weight)
        attended = torch.bmm(weights.to(values.dtype), values)  # (H, T, E)
        attended = torch.addcmul(attended.float(), states.own[:, block].float(), own_weight[..., None])
        return attended.div_(total[..., None]).to(values.dtype).transpose(0, 1).flatten(1)


class NativeAttention:
    """The kernel in C. States: query as `Kernel.pack_query`, own (H, N, E), own_lse (H, N') as `Kernel.pack_lse`."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def items(self, states: ItemStates) -> ItemStates:
        return self._packed(_heads_first(states))

    def take(self, states: ItemStates, index: Tensor) -> ItemStates:
        query = states.query[:, :, index].transpose(1, 2).flatten(2)  # (H, len(index), E)
        chosen = (states.hidden[index], query, states.own[:, index], states.own_lse[:, index])
        return self._packed(ItemStates(*chosen, states.hidden_mask))

    def user(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, int]:
        return self.kernel.pack_user(keys, values)

    def attend(self, states: ItemStates, user: tuple[Tensor, Tensor, int], block: slice) -> Tensor:
        return self.kernel.attend(states.query, states.own, states.own_lse, user, block)

    def _packed(self, states: ItemStates) -> ItemStates:
        query, own_lse = self.kernel.pack_query(states.query), self.kernel.pack_lse(states.own_lse)
        return ItemStates(states.hidden, query, states.own.contiguous(), own_lse, states.hidden_mask)


def attention_of(kernel: Kernel | None, dtype: torch.dtype, width: int) -> Attention:
    """The kernel where it multiplies this dtype and heads of this width, torch elsewhere."""
    return NativeAttention(kernel) if kernel is not None and kernel.fits(dtype, width) else TorchAttention()


def _heads_first(states: ItemStates) -> ItemStates:
    return ItemStates(
        hidden=states.hidden[:, 0].contiguous(),  # (N, D)
        query=states.query[:, :, 0].transpose(0, 1).contiguous(),  # (H, N, E)
        own=states.own[:, :, 0].transpose(0, 1).contiguous(),  # (H, N, E)
        own_lse=states.own_lse[:, :, 0].transpose(0, 1).contiguous(),  # (H, N)
        hidden_mask=states.hidden_mask,
    )
