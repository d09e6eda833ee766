"""Encoders that know one kind of segment alone."""

from __future__ import annotations

import pytest
import torch

from flmrec_spark.lm.model import SegmentedModel
from tests.lm.families.test_base import ITEM_POSITION, ITEM_TOKENS, ITEMS, N_LAYERS, USERS, logits
from tests.tiny import tiny_family


@pytest.mark.parametrize(("join", "layer"), [("layer", 1), ("attention", N_LAYERS - 1), ("full", 0)])
def test_an_encoder_of_one_kind_of_segment_reads_both_as_that(join: str, layer: int) -> None:
    backbone = tiny_family("bert")
    kinds = torch.nn.Embedding(1, backbone.config.hidden_size)
    kinds.weight.data = backbone.embeddings.token_type_embeddings.weight.data[:1].clone()
    backbone.embeddings.token_type_embeddings, backbone.config.type_vocab_size = kinds, 1
    model = SegmentedModel(
        backbone, join=join, join_layer=layer, item_position=ITEM_POSITION, item_tokens=ITEM_TOKENS
    ).eval()
    with torch.inference_mode():
        assert torch.isfinite(logits(model, USERS, ITEMS)).all()
