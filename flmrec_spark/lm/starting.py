"""The model that a training starts from."""

from __future__ import annotations

from flmrec_spark.config import Config
from flmrec_spark.lm.families import load_backbone
from flmrec_spark.lm.layers import keep_layers
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.rematerialise import rematerialise


def build_model(config: Config) -> SegmentedModel:
    """The pretrained backbone, with the layers that are kept, and a new head. Raises as its parts do."""
    backbone = load_backbone(config.model.path, dropout=config.finetune.dropout)
    if config.model.keep_layers is not None:
        keep_layers(backbone, config.model.keep_layers)
    n_layers = int(backbone.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
    join_layer = n_layers - 1 if config.model.join_layer == "last" else config.model.join_layer
    if config.model.join == "attention":
        join_layer = n_layers - 1
    model = SegmentedModel(
        backbone,
        join=config.model.join,
        join_layer=join_layer,
        item_position=config.prompts.user_tokens,
        item_tokens=config.prompts.item_tokens,
    )
    if config.finetune.gradient_checkpointing:
        rematerialise(model)
    return model
