"""The kernel in C against torch for every family and every join, with heads as wide as the kernel's vectors."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import transformers

from flmrec_spark.lm import native
from flmrec_spark.lm.early_join import EarlyJoin
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.token_block import TokenBlock
from tests.tiny import DECODERS, ENCODER_DECODERS, FAMILIES, SEGMENTED

KERNEL = native.load(native.build())
pytestmark = pytest.mark.skipif(KERNEL is None, reason="no C compiler, or a CPU that the kernel does not know")
WIDE = [
    {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 64},
    {"dim": 64, "n_heads": 2},
    {"n_embd": 64, "n_head": 2},
]
USER = [5, 6, 7, 8, 9, 10, 11]


@cache
def wide(family: str) -> torch.nn.Module:
    """Heads of 32, or of T5 16."""
    config = FAMILIES[family](3)
    if family in ENCODER_DECODERS:
        config.d_kv = 16
    elif hasattr(config, "num_key_value_heads"):
        config.head_dim, config.hidden_size, config.intermediate_size = 32, 64, 64
    else:
        values = next(values for values in WIDE if all(hasattr(config, name) for name in values))
        config = type(config)(**{**config.to_dict(), **values})
    torch.manual_seed(1)
    return transformers.AutoModel.from_config(config).eval()


def model_of(family: str, join: str, join_layer: int) -> SegmentedModel:
    model = SegmentedModel(wide(family), join=join, join_layer=join_layer, item_position=20, item_tokens=8).eval()
    model.rating.item_weight.data.normal_(generator=torch.Generator().manual_seed(7))
    model.rating.user_weight.data.normal_(generator=torch.Generator().manual_seed(8))
    return model


def items_of(n: int) -> TokenBlock:
    random = np.random.default_rng(3)
    return TokenBlock(random.integers(5, 60, (n, 6)).astype(np.int32), random.integers(2, 7, n).astype(np.int32))


@pytest.mark.parametrize("family", SEGMENTED)
@pytest.mark.parametrize(
    ("join", "join_layer"), [("layer", 0), ("layer", 1), ("layer", 2), ("layer", 3), ("attention", 2)]
)
def test_the_kernel_scores_as_torch_does(family, join, join_layer):
    model, items = model_of(family, join, join_layer), items_of(41)
    plain = Scorer(model, items).logits(USER)
    found = Scorer(model, items, kernel=KERNEL)
    assert isinstance(found.one.early, EarlyJoin) == (join_layer < 2 and family not in ENCODER_DECODERS)
    np.testing.assert_allclose(found.logits(USER), plain, rtol=1e-4, atol=1e-5 * np.ptp(plain))
    assert np.ptp(plain) > 0.01  # items differ, so a wrong one would show


@pytest.mark.parametrize("family", ["bert", *DECODERS])
def test_bf16_and_int8_are_near_float32(family):
    model, items = model_of(family, "layer", 1), items_of(60)
    exact = Scorer(model, items).logits(USER)
    for precision in ("bf16", "int8"):
        found = Scorer(model, items, precision=precision, packed=True, kernel=KERNEL).logits(USER)
        assert np.corrcoef(found, exact)[0, 1] > 0.97, precision


def test_blocks_of_any_size_give_the_same_scores():
    scorer = Scorer(model_of("bert", "layer", 0), items_of(200), kernel=KERNEL)
    whole = scorer.logits(USER)
    scorer.one.early_blocks.size = 64
    np.testing.assert_allclose(scorer.logits(USER), whole, rtol=1e-5, atol=1e-6)


def test_the_model_that_was_given_is_left_without_a_kernel():
    model = model_of("bert", "layer", 1)
    Scorer(model, items_of(3), kernel=KERNEL)
    assert model.family.kernel is None
