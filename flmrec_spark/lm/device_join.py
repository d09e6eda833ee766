"""The joined layers on a GPU, for many users at once: encoders and decoders, whatever layer they join in.

In the first joined layer an item's query and own part are the same for every user and are read in place. In those
between, tokens attend to their item and their user in one kernel. In the last one the score token alone is left.

Shapes: B users, T items, S item tokens, D hidden, H heads, K key-value heads, E size of a head, V heads of the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flmrec_spark.lm import device_kernels as kernels
from flmrec_spark.lm.device_layers import DeviceLayer, device_layers
from flmrec_spark.lm.families.base import SelfJoined
from flmrec_spark.lm.model import ItemStates, SegmentedModel, UserStates


class DeviceJoin:
    """The items of a catalogue, ready for the layers join_layer .. L - 1.

    Args:
      model: of a family that `fits`, not `join: full`, in eval mode.
      states: of N items, as the model gives them.
    """

    def __init__(self, model: SegmentedModel, states: ItemStates) -> None:
        self.model, self.states, self.family = model, states, model.family
        self.last: DeviceLayer | None = None
        if not model.is_two_towers:
            assert isinstance(model.family, SelfJoined)
            fused: Any = model.family.fused
            self.last = None if fused is None else fused[-1]

    @property
    def n_rows(self) -> int:
        """Tokens that an item is worth in memory."""
        return self.states.hidden_mask.shape[1] if self.model.keeps_tokens else 1

    def take(self, index: Tensor) -> DeviceJoin:
        """Some of the items, in the order of the index."""
        return DeviceJoin(self.model, self.states.take(index))

    def logits(self, users: UserStates, start: int, stop: int) -> Tensor:
        """Logits of the items start .. stop - 1 of each user: float32 (V, B, T)."""
        heads = [head.of_users(users.pooled) for head in self.model.heads]
        vectors = torch.stack([vector for vector, _ in heads], dim=1)  # (B, V, D)
        constants = torch.stack([constant for _, constant in heads])  # (V, B)
        return self._dots(users, vectors, start, stop) + constants[..., None]

    def _dots(self, users: UserStates, vectors: Tensor, start: int, stop: int) -> Tensor:
        """Dot products (V, B, T) of the last hidden states with vectors (B, V, D)."""
        states, model, family = self.states, self.model, self.family
        if model.is_two_towers:
            return _dotted(states.hidden[start:stop, 0].float(), vectors)
        feed_forward, lengths = model.join != "attention", (~users.hidden_mask).sum(-1)
        layer, hidden = model.join_layer, states.hidden[start:stop]
        query, own, own_lse = (part[None, start:stop] for part in (states.query, states.own, states.own_lse))
        padded = states.hidden_mask[start:stop]
        positions = torch.arange(padded.shape[1], device=padded.device) + model.item_position
        for step, (keys, values) in enumerate(zip(users.keys, users.values, strict=True)):
            is_first, is_last = step == 0, layer == family.n_layers - 1
            known = keys, values, lengths
            if is_last and not is_first:
                begun = family.begin(layer, hidden.flatten(0, 1), padded.repeat(len(lengths), 1), positions)
                parts = (begun.query, begun.own, begun.own_lse, begun.residual)
                query, own, own_lse, hidden = (part.view(len(lengths), -1, *part.shape[1:]) for part in parts)
            if is_first or is_last:
                attended = kernels.attend_known(query, own, own_lse, *known)
            else:
                assert isinstance(family, SelfJoined)
                projected = family.project(layer, hidden.flatten(0, 1), positions)
                own_lengths = (~padded).sum(-1)
                attended = kernels.attend_tokens(projected, own_lengths, *known, is_causal=family.is_causal)
            if is_last and self.last is not None:
                return self.last.dots(hidden[..., 0, :], attended[:, :, 0], vectors, feed_forward=feed_forward)
            hidden = family.finish(layer, hidden, attended, feed_forward=feed_forward)
            layer += 1
        return _dotted(hidden[:, :, 0].float(), vectors)


def fits(model: SegmentedModel, n_tokens: int) -> bool:
    """Whether a model with items of so many tokens goes through `DeviceJoin`."""
    family = model.family
    asking, weight = n_tokens if model.keeps_tokens else 1, next(model.backbone.parameters())
    limits: dict[str, Any] = {"itemsize": weight.itemsize, "shared_bytes": kernels.shared_bytes_of(weight.device)}
    return (
        model.join != "full" and isinstance(family, SelfJoined) and kernels.attends(family.head_size, asking, **limits)
    )


def use_device_layers(model: SegmentedModel) -> None:
    """From now on a family of post-norm layers computes with `DeviceLayer`; for inference, in the model's dtype."""
    family: Any = model.family
    if isinstance(family, SelfJoined):
        family.fused = device_layers(family)


def _dotted(hidden: Tensor, vectors: Tensor) -> Tensor:
    """hidden (T, D) or (B, T, D), vectors (B, V, D) -> (V, B, T)."""
    return (vectors @ hidden.transpose(-1, -2)).transpose(0, 1)
