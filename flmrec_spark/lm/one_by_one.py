"""The joined layers for one user at a time: on a CPU by the kernel in C where it fits, else by torch.

Shapes: N items, P user tokens, D hidden, H heads, E = D / H.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flmrec_spark.lm.attention import Attention
from flmrec_spark.lm.early_join import EarlyJoin, early_join_of
from flmrec_spark.lm.families.base import expanded
from flmrec_spark.lm.fused import FusedLast
from flmrec_spark.lm.memory import Blocks
from flmrec_spark.lm.model import ItemStates, SegmentedModel, UserStates
from flmrec_spark.lm.native import Kernel

LAST_BLOCK = {"cpu": 512, "cuda": 8192}  # items of a block: fits the cache, or fills the device
EARLY_BLOCK = {"cpu": 128, "cuda": 2048}
Index = npt.NDArray[np.intp]
Work = Callable[[int, int], None]  # on items start .. stop - 1


class OneByOne:
    """A catalogue that users are scored against.

    Args:
      model: not `join: full`, in eval mode.
      states: of N items, laid out by `fused` or `attention` when the model joins in its last layer.
      attention: of the last layer.
      fused: the whole last layer, where the kernel has it.
      kernel: for joins before the last layer.
    """

    def __init__(
        self,
        model: SegmentedModel,
        states: ItemStates,
        attention: Attention,
        fused: FusedLast | None,
        kernel: Kernel | None,
    ) -> None:
        self.model, self.states, self.attention, self.fused = model, states, attention, fused
        self.device = states.hidden.device
        self.is_last = model.join_layer == model.family.n_layers - 1
        self.last_blocks, self.early_blocks = (Blocks(size[self.device.type]) for size in (LAST_BLOCK, EARLY_BLOCK))
        self.early = early_join_of(model, kernel, states)

    def logits(self, user: UserStates, items: Index | None) -> Tensor:
        """Logits (heads, items) of one user for all items, or for those of an index."""
        states, n_heads = self.states, len(self.model.heads)
        index = None if items is None else torch.from_numpy(items).to(self.device)
        if self.model.is_two_towers:
            hidden = states.hidden[:, 0] if index is None else states.hidden[index, 0]
            logits = torch.empty(n_heads, len(hidden), device=self.device)
            self.last_blocks.run(len(hidden), self._dots(hidden, user, logits))
            return logits
        if self.is_last and index is not None:
            states = (self.fused or self.attention).take(states, index)
        if self.fused is not None:
            return self._fused_last(self.fused, user, states)
        n_items = len(states.hidden) if self.is_last or index is None else len(index)
        logits = torch.empty(n_heads, n_items, device=self.device)
        if self.is_last:
            self.last_blocks.run(n_items, self._last_layer(user, states, logits))
        elif self.early is not None and index is None:
            self.early_blocks.run(n_items, self._early_layers(self.early, user, logits))
        else:
            self.early_blocks.run(n_items, self._layers(user, states, index, logits))
        return logits

    def _layers(self, user: UserStates, items: ItemStates, index: Tensor | None, logits: Tensor) -> Work:
        """What writes the logits of some items, in the order of an index: the layers from the join on, by torch."""

        def score_block(start: int, stop: int) -> None:
            grid = torch.arange(start, stop, device=self.device) if index is None else index[start:stop]
            hidden = self.model.joined(user, items, grid[None])[0]
            logits[:, start:stop] = heads_of(self.model, hidden, user.pooled)

        return score_block

    def _dots(self, hidden: Tensor, user: UserStates, logits: Tensor) -> Work:
        """As `_layers`, of two towers' last hidden states (n, D)."""
        of_user = [head.of_user(user.pooled[0]) for head in self.model.heads]

        def score_block(start: int, stop: int) -> None:
            own = hidden[start:stop].float()
            for row, (direction, constant) in enumerate(of_user):
                torch.addmv(constant, own, direction, out=logits[row, start:stop])

        return score_block

    def _early_layers(self, early: EarlyJoin, user: UserStates, logits: Tensor) -> Work:
        """As `_layers`, of all items and by the kernel."""
        known = early.user(user)

        def score_block(start: int, stop: int) -> None:
            hidden = early.last_hidden(known, start, stop)
            logits[:, start:stop] = heads_of(self.model, hidden, user.pooled)

        return score_block

    def _last_layer(self, user: UserStates, items: ItemStates, logits: Tensor) -> Work:
        """What writes the logits of the items start .. stop - 1: the last layer of one token each."""
        model = self.model
        known = self.attention.user(*self._keys(user))
        of_user = [head.of_user(user.pooled[0]) for head in model.heads]

        def score_block(start: int, stop: int) -> None:
            attended = self.attention.attend(items, known, slice(start, stop))
            layer, feed_forward = model.family.n_layers - 1, model.join != "attention"
            hidden = model.family.finish(layer, items.hidden[start:stop], attended, feed_forward=feed_forward)
            hidden = hidden.float()
            for row, (direction, constant) in enumerate(of_user):
                torch.addmv(constant, hidden, direction, out=logits[row, start:stop])

        return score_block

    def _fused_last(self, fused: FusedLast, user: UserStates, items: ItemStates) -> Tensor:
        """Logits (heads, N) of all of the items: the last layer and the heads in one call."""
        directions, constants = zip(*[head.of_user(user.pooled[0]) for head in self.model.heads], strict=True)
        return fused.dots(items, *self._keys(user), torch.stack(directions)) + torch.stack(constants)[:, None]

    def _keys(self, user: UserStates) -> tuple[Tensor, Tensor]:
        """Keys and values (H, P, E) of the last layer."""
        n_heads = self.model.family.n_heads
        return expanded(user.keys[0][0], n_heads), expanded(user.values[0][0], n_heads)


def heads_of(model: SegmentedModel, hidden: Tensor, pooled: Tensor) -> Tensor:
    """(heads, n) of last hidden states (n, D) and the user's mean (1, D) or (n, D)."""
    return torch.stack([head(hidden, pooled) for head in model.heads])
