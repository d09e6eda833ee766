"""Joins before the last layer on a CPU, by the kernel in C: items of a block meet one user, layer by layer.

In the first joined layer an item's own part is a constant of the item, as in a last-layer join. In those between, its
tokens attend to themselves and to the user in one pass. In the last one the score token alone is left.

Shapes: N items, T of them in a block, S item tokens, D hidden, H heads, E size of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flmrec_spark.lm.families.base import Begun, SelfJoined, expanded
from flmrec_spark.lm.model import ItemStates, SegmentedModel, UserStates
from flmrec_spark.lm.native import Kernel


class EarlyJoin:
    """The items of a catalogue, ready for the layers join_layer .. L - 1.

    Args:
      model: an encoder or a decoder, joined before its last layer, in eval mode.
      states: of N items, as the model gives them.
    """

    def __init__(self, model: SegmentedModel, kernel: Kernel, states: ItemStates) -> None:
        assert isinstance(model.family, SelfJoined)
        self.model, self.kernel, self.family = model, kernel, model.family
        self.hidden, self.hidden_mask = states.hidden, states.hidden_mask
        self.query, self.own, self.own_lse = self._packed(states)

    def user(self, user: UserStates) -> list[Any]:
        """Keys and values of one user per joined layer, as the kernel reads them."""
        layers = [[part[0] for part in parts] for parts in zip(user.keys, user.values, strict=True)]
        for place in {0, len(layers) - 1}:  # where each head is asked alone
            layers[place] = [expanded(part, self.family.n_heads) for part in layers[place]]
        return [self.kernel.pack_user(*parts) for parts in layers]

    def last_hidden(self, user: list[Any], start: int, stop: int) -> Tensor:
        """Last hidden states (T, D) of the score tokens of the items start .. stop - 1; `user` as above."""
        family, n_tokens = self.family, self.hidden.shape[1]
        layer, padded = self.model.join_layer, self.hidden_mask[start:stop]
        positions = torch.arange(n_tokens) + self.model.item_position
        block = slice(start * n_tokens, stop * n_tokens)
        attended = self.kernel.attend(self.query, self.own, self.own_lse, user[0], block)
        hidden = family.finish(layer, self.hidden[start:stop], attended.view(stop - start, n_tokens, -1))
        for known in user[1:-1]:
            layer += 1
            projected = family.project(layer, hidden, positions)
            hidden = family.finish(layer, hidden, family.attend_by(self.kernel, *projected, padded, known))
        last = family.begin(layer + 1, hidden, padded, positions)
        query, own, own_lse = self._packed(last)
        attended = self.kernel.attend(query, own, own_lse, user[-1], slice(0, stop - start))
        return family.finish(layer + 1, last.residual[:, 0], attended)

    def _packed(self, states: ItemStates | Begun) -> tuple[Tensor, Tensor, Tensor]:
        """Query, own part and its log-sum-exp of all tokens, heads first."""
        query, own = (part.transpose(0, 1).flatten(1, 2) for part in (states.query, states.own))  # (H, N * Q, E)
        own_lse = states.own_lse.transpose(0, 1).flatten(1, 2)
        return self.kernel.pack_query(query), own.contiguous(), self.kernel.pack_lse(own_lse)


def early_join_of(model: SegmentedModel, kernel: Kernel | None, states: ItemStates | None) -> EarlyJoin | None:
    """For models that the kernel fits, joined at least a layer before the last; None elsewhere."""
    if kernel is None or states is None or model.join != "layer" or not model.keeps_tokens:
        return None
    family, dtype = model.family, states.query.dtype
    fits = kernel.fits(dtype, family.head_size) and kernel.fits_self(dtype, family.head_size)
    return EarlyJoin(model, kernel, states) if fits and isinstance(family, SelfJoined) else None
