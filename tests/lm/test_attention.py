"""The two forms of a last-layer join's attention against each other and against the model itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from flmrec_spark.errors import EnvironmentFault
from flmrec_spark.lm import native
from flmrec_spark.lm.attention import NativeAttention, TorchAttention, attention_of
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.token_block import TokenBlock

KERNEL = native.load(native.build())
pytestmark = pytest.mark.skipif(KERNEL is None, reason="no C compiler, or a CPU that the kernel does not know")
USER = [5, 6, 7, 8, 9, 10, 11]


def model_of(join: str) -> SegmentedModel:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64
    )  # heads of 16: the kernel takes no narrower ones
    model = SegmentedModel(
        BertModel(config, add_pooling_layer=False),
        join=join,
        join_layer=2,
        item_position=20,
        item_tokens=8,
    )
    for number, weight in enumerate((model.rating.item_weight, model.rating.user_weight)):
        weight.data.normal_(generator=torch.Generator().manual_seed(number))
    model.rating.dot.data.fill_(0.5)
    model.rating.offset.data.fill_(-0.25)
    return model.eval()


def items_of(n: int) -> TokenBlock:
    random = np.random.default_rng(3)
    lengths = random.integers(2, 7, n).astype(np.int32)
    return TokenBlock(random.integers(5, 60, (n, 6)).astype(np.int32), lengths)


@pytest.mark.parametrize("join", ["layer", "attention"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_kernel_scores_as_torch_does(join, packed):
    model, items = model_of(join), items_of(77)
    plain = Scorer(model, items).logits(USER)
    found = Scorer(model, items, packed=packed, kernel=KERNEL)
    assert isinstance(found.attention, NativeAttention)
    np.testing.assert_allclose(found.logits(USER), plain, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("join", ["layer", "attention"])
def test_the_kernel_scores_some_of_the_items_as_it_scores_all(join):
    scorer = Scorer(model_of(join), items_of(77), kernel=KERNEL)
    chosen = np.array([3, 76, 40, 0])
    np.testing.assert_allclose(scorer.logits(USER, items=chosen), scorer.logits(USER)[chosen], rtol=1e-5, atol=2e-6)


def test_states_that_were_saved_give_the_same_scores(tmp_path):
    model, items = model_of("layer"), items_of(40)
    first = Scorer(model, items, kernel=KERNEL)
    first.save_states(first.encode(items), tmp_path / "states")
    again = Scorer(model, items, kernel=KERNEL, states=tmp_path / "states")
    np.testing.assert_array_equal(again.logits(USER), first.logits(USER))


def test_bf16_and_int8_order_the_items_nearly_as_float32_does():
    model, items = model_of("layer"), items_of(200)
    exact = Scorer(model, items).logits(USER)
    for precision in ("bf16", "int8"):
        found = Scorer(model, items, precision=precision, packed=True, kernel=KERNEL).logits(USER)
        assert np.corrcoef(found, exact)[0, 1] > 0.99, precision


def test_a_head_that_the_kernel_does_not_fit_is_left_to_torch():
    assert isinstance(attention_of(KERNEL, torch.float32, 24), TorchAttention)
    assert isinstance(attention_of(None, torch.float32, 32), TorchAttention)


def test_int8_without_the_kernel_says_so():
    with pytest.raises(EnvironmentFault, match=r"score.precision: got int8"):
        Scorer(model_of("layer"), items_of(3), precision="int8")
