"""Gradient checkpointing: what a layer computes is thrown away and computed again in the backward pass.

Chen et al. 2016. Of a layer only its input, its queries, keys and values and what was attended to stay in memory,
about 5 D floats a token, instead of about 16 D.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from flmrec_spark.lm.model import SegmentedModel


class Rematerialised:
    """A family whose products and feed-forwards are computed again when their gradients are asked for."""

    def __init__(self, family: Any) -> None:
        self._family = family

    def __getattr__(self, name: str) -> Any:
        if name == "_family":  # asked for while a copy is made, before it has one
            raise AttributeError(name)
        return getattr(self._family, name)

    def project(self, layer: int, hidden: Tensor, *more: Any, **named: Any) -> Any:
        return _again(self._family.project, layer, hidden, *more, **named)

    def finish(self, layer: int, hidden: Tensor, attended: Tensor, *more: Any, **named: Any) -> Any:
        return _again(self._family.finish, layer, hidden, attended, *more, **named)


def _again(function: Any, *values: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return function(*values, **named)
    return checkpoint(function, *values, use_reentrant=False, **named)


def rematerialise(model: SegmentedModel) -> None:
    """Trains the model with less memory and the same gradients; `join: full` by transformers' own switch."""
    if model.join == "full":
        model.backbone.activation_checkpointing_enable()  # type: ignore[operator]
    else:
        model.family = Rematerialised(model.family)
