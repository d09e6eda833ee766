"""The model that a training starts from."""

from __future__ import annotations

import torch
from torch import nn

from flmrec_spark.config import Config
from flmrec_spark.errors import ConfigError
from flmrec_spark.lm import adapters
from flmrec_spark.lm.families.loading import head_rows, load_backbone
from flmrec_spark.lm.families.registry import family_of
from flmrec_spark.lm.layers import keep_layers
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.preflight import meta_model
from flmrec_spark.lm.rematerialise import rematerialise
from flmrec_spark.lm.segments import Segmenter

_START = 0.01


def build_model(config: Config, segmenter: Segmenter, *, n_factors: int = 0) -> SegmentedModel:
    """The pretrained backbone, with the layers that are kept, and new heads.

    `n_factors` are those of an item; their token's maps start near 0, so that the pretrained model is hardly disturbed.

    `model.head: answer` starts the head at the difference of the language head's rows for yes and no, so that an
    untrained logit is that of yes minus that of no.

    Raises:
      ConfigError: a setting does not fit the family, or the template has no usable answer.
      CheckpointError: the pretrained folder is not usable.
    """
    backbone = load_backbone(config.model.path, dropout=config.finetune.dropout)
    if config.model.keep_layers is not None:
        keep_layers(backbone, config.model.keep_layers)
    model = _segmented(backbone, config, n_factors=n_factors if segmenter.has_factors else 0)
    for token in (model.user_token, model.item_token):
        if token is not None:
            nn.init.normal_(token.weight, std=_START)
            nn.init.zeros_(token.bias)
    if config.model.head == "answer":
        (yes, no), bias = head_rows(config.model.path, backbone, _answers(segmenter))
        for head in model.heads:
            head.start(yes - no, float(bias[0] - bias[1]))
    if config.finetune.gradient_checkpointing:
        rematerialise(model)
    return model


def expect_fit(config: Config, segmenter: Segmenter, *, n_steps: int) -> None:
    """Raises ConfigError as `build_model` and an adapter would: before anything is learned, and without weights."""
    with torch.device("meta"):
        _segmented(meta_model(config), config, n_factors=0)
    if config.model.head == "answer":
        _answers(segmenter)
    adapters.expect_steps(config.finetune.adapter, n_steps)


def _segmented(backbone: nn.Module, config: Config, *, n_factors: int) -> SegmentedModel:
    n_layers = family_of(backbone).n_layers
    return SegmentedModel(
        backbone,
        join=config.model.join,
        join_layer=n_layers - 1 if config.model.join_layer == "last" else config.model.join_layer,
        item_position=config.prompts.user_tokens,
        item_tokens=config.prompts.item_tokens,
        has_listing=config.finetune.ranking_weight > 0.0,
        n_factors=n_factors,
    )


def _answers(segmenter: Segmenter) -> tuple[int, int]:
    if segmenter.layout.kind == "encoder":
        raise ConfigError("model.head: got answer, expected linear: an encoder has no next word")
    return segmenter.answers()
