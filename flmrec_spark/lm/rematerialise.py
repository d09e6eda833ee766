"""Gradient checkpointing: what a layer computes is thrown away and computed again in the backward pass.

Chen et al. 2016. Of a layer only its input, its queries, keys and values and what was attended to stay in memory,
about 5 D floats a token, instead of about 16 D.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from flmrec_spark.lm.families.base import SelfJoined
from flmrec_spark.lm.families.t5 import T5
from flmrec_spark.lm.model import SegmentedModel


def _again(function: Any, *values: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return function(*values, **named)
    return checkpoint(function, *values, use_reentrant=False, **named)


def rematerialise(model: SegmentedModel) -> None:
    """Trains the model with less memory and the same gradients; `join: full` by transformers' own switch."""
    if model.join == "full":
        model.backbone.activation_checkpointing_enable()  # type: ignore[operator]
        return
    family: Any = model.family
    if isinstance(family, T5):  # whose user goes through the stock encoder
        family.backbone.encoder.activation_checkpointing_enable()
    parts = ("project", "finish") if isinstance(family, SelfJoined) else ("alone", "begin", "finish")
    for name in parts:
        setattr(family, name, partial(_again, getattr(family, name)))
