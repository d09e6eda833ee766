"""The layers of a pretrained model, found by name, whatever its family."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from flmrec_spark.errors import ConfigError

_NAME = re.compile(r"(?:^|\.)(?:layer|h|layers|block)\.(\d+)\.")


def layer_of(name: str) -> int | None:
    """The layer, from 0, that a parameter or module of this name belongs to; None outside the layers."""
    found = _NAME.search(name + ".")
    return int(found.group(1)) if found else None


def n_layers(backbone: nn.Module) -> int:
    """How many layers the parameters' names tell of."""
    found = [layer_of(name) for name, _ in backbone.named_parameters()]
    return max((layer for layer in found if layer is not None), default=-1) + 1


def keep_layers(backbone: nn.Module, kept: Sequence[int]) -> None:
    """Drops every other layer, in place; the model's own config says how many are left.

    Raises:
      ConfigError: the model lacks one of the layers, has several stacks of them, or layers that know their place.
    """
    stacks = [
        (name, module)
        for name, module in backbone.named_modules()
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in ("layer", "h", "layers", "block")
        if layer_of(name) is None
    ]
    if len(stacks) != 1:
        raise ConfigError(f"model.keep_layers: got a model with {len(stacks)} stacks of layers, expected one; use null")
    name, stack = stacks[0]
    total = len(stack)
    if max(kept) >= total:
        raise ConfigError(f"model.keep_layers: got {list(kept)}, expected numbers of 0 .. {total - 1}")
    _expect_alike(backbone.config, kept)
    parent, _, attribute = name.rpartition(".")
    setattr(backbone.get_submodule(parent), attribute, nn.ModuleList([stack[layer] for layer in kept]))
    config = backbone.config
    config.num_hidden_layers = len(kept)  # type: ignore[union-attr]
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        config.layer_types = [kinds[layer] for layer in kept]  # type: ignore[union-attr]
    for place, layer in enumerate(kept):
        for module in stack[layer].modules():
            own: Any = module
            if isinstance(getattr(own, "layer_idx", None), int):  # a decoder's place in its key-value cache
                own.layer_idx = place


def _expect_alike(config: Any, kept: Sequence[int]) -> None:
    """Refuses models in which a layer computes something else at another place, as a reader of the checkpoint would."""
    if config.model_type == "modernbert" and kept[0] != 0:
        raise ConfigError(f"model.keep_layers: got {list(kept)}, expected 0 among them: ModernBERT's first has no norm")
    if getattr(config, "scale_attn_by_inverse_layer_idx", False) and list(kept) != list(range(len(kept))):
        raise ConfigError(
            f"model.keep_layers: got {list(kept)}, expected the first ones, as this model's attention is scaled by the "
            "layer's number (scale_attn_by_inverse_layer_idx)"
        )
