"""Packed dense layers against torch's own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from flmrec_spark.errors import ConfigError
from flmrec_spark.lm import kernels, native
from flmrec_spark.lm.kernels import PackedLinear, can_quantize, pack_linears, quantize_linears
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.precision import can_pack
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.token_block import TokenBlock
from tests.tiny import tiny_bert

pytestmark = pytest.mark.skipif(not can_pack(), reason="this build of torch has no oneDNN")


@pytest.mark.parametrize("shape", [(7, 24), (3, 5, 24), (1, 24)])
@pytest.mark.parametrize("with_bias", [True, False])
@torch.inference_mode()
def test_a_packed_layer_equals_the_plain_one(shape, with_bias):
    torch.manual_seed(1)
    plain = nn.Linear(24, 40, bias=with_bias)
    states = torch.randn(shape)
    torch.testing.assert_close(PackedLinear(plain)(states), plain(states), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_packed_layer_takes_states_that_are_not_contiguous():
    torch.manual_seed(1)
    plain = nn.Linear(24, 40)
    states = torch.randn(24, 7).T
    torch.testing.assert_close(PackedLinear(plain)(states), plain(states), rtol=1e-5, atol=1e-5)


def test_every_dense_layer_of_a_model_is_replaced():
    backbone = tiny_bert()
    n_dense = sum(type(module) is nn.Linear for module in backbone.modules())
    pack_linears(backbone)
    assert sum(isinstance(module, PackedLinear) for module in backbone.modules()) == n_dense == 18
    assert not any(type(module) is nn.Linear for module in backbone.modules())


@torch.inference_mode()
def test_gpt2_s_layers_with_transposed_weights_are_replaced_too():
    torch.manual_seed(1)
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=40, bos_token_id=1, eos_token_id=1)
    exact, kernel = GPT2Model(config).eval(), native.load(native.build())
    ids = torch.arange(2, 12)[None]
    expected = exact(ids).last_hidden_state
    packed, quantized = copy.deepcopy(exact), copy.deepcopy(exact)
    pack_linears(packed)
    assert sum(isinstance(module, PackedLinear) for module in packed.modules()) == 8
    torch.testing.assert_close(packed(ids).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    if kernel is None or not kernel.multiplies_bytes:
        pytest.skip("no product of bytes here")
    assert can_quantize(quantized) and quantize_linears(quantized, kernel) == 8
    error = quantized(ids).last_hidden_state - expected
    assert 0 < error.abs().mean() < 0.05 * expected.abs().mean()


def test_a_model_whose_sides_the_kernel_does_not_take_is_not_scored_in_float32_under_another_name():
    kernel = native.load(native.build())
    if kernel is None or not kernel.multiplies_bytes:
        pytest.skip("no product of bytes here")
    torch.manual_seed(1)
    config = BertConfig(vocab_size=64, hidden_size=24, num_attention_heads=3, num_hidden_layers=2, intermediate_size=40)
    odd = BertModel(config, add_pooling_layer=False)
    assert not can_quantize(odd)
    model = SegmentedModel(odd, join="attention", join_layer=1, item_position=20, item_tokens=8).eval()
    items = TokenBlock(np.full((2, 3), 7, dtype=np.int32), np.full(2, 3, dtype=np.int32))
    with pytest.raises(ConfigError, match=r"score.precision: got int8, expected a model with layers whose sides"):
        Scorer(model, items, precision="int8", kernel=kernel)


def test_layers_that_onednn_does_not_multiply_here_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(kernels, "can_pack", lambda dtype: dtype != torch.bfloat16)
    backbone = tiny_bert().bfloat16()
    pack_linears(backbone)
    assert not any(isinstance(module, PackedLinear) for module in backbone.modules())


@pytest.mark.parametrize(
    ("join", "join_layer"), [("layer", 0), ("layer", 2), ("layer", 3), ("attention", 2), ("full", 2)]
)
def test_a_packed_scorer_scores_as_the_plain_one_and_leaves_the_model_alone(join, join_layer):
    model = SegmentedModel(tiny_bert(), join=join, join_layer=join_layer, item_position=20, item_tokens=8).eval()
    model.rating.item_weight.data.normal_(generator=torch.Generator().manual_seed(7))
    tokens = torch.randint(5, 60, (9, 6), generator=torch.Generator().manual_seed(8), dtype=torch.int32)
    items = TokenBlock(tokens.numpy(), torch.full((9,), 6, dtype=torch.int32).numpy())
    plain = Scorer(model, items).logits([5, 6, 7, 8])
    packed = Scorer(model, items, packed=True).logits([5, 6, 7, 8])
    torch.testing.assert_close(torch.from_numpy(packed), torch.from_numpy(plain), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, PackedLinear) for module in model.modules())
