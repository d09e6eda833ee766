"""Layers by name, and a model of fewer layers that transformers opens as its own."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoModel,
    GPT2Config,
    GPT2Model,
    ModernBertConfig,
    ModernBertModel,
    T5Config,
    T5Model,
)

from flmrec_spark.errors import ConfigError
from flmrec_spark.lm import checkpoint
from flmrec_spark.lm.finetuning import finetune
from flmrec_spark.lm.layers import keep_layers, layer_of, n_layers
from tests.prepared import tiny_config
from tests.tiny import save_tiny, tiny_bert

IDS = torch.arange(5, 15)[None]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("backbone.encoder.layer.3.attention.self.query.weight", 3),
        ("h.0.attn.c_attn", 0),
        ("model.layers.11.mlp.up_proj.weight", 11),
        ("encoder.block.1.layer.0.SelfAttention.q.weight", 1),
        ("embeddings.word_embeddings.weight", None),
        ("ln_f.weight", None),
    ],
)
def test_the_layer_stands_in_the_name(name, layer):
    assert layer_of(name) == layer


@torch.inference_mode()
def test_kept_layers_are_those_of_the_model_in_their_order(tmp_path):
    whole, backbone = tiny_bert(), tiny_bert()
    keep_layers(backbone, [0, 2])
    hidden = whole.embeddings(IDS)
    for layer in (0, 2):
        hidden = whole.encoder.layer[layer](hidden)
    torch.testing.assert_close(backbone(IDS).last_hidden_state, hidden)
    backbone.save_pretrained(tmp_path)
    stock = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert (stock.config.num_hidden_layers, n_layers(stock)) == (2, 2)
    torch.testing.assert_close(stock(IDS).last_hidden_state, hidden)


@torch.inference_mode()
def test_a_decoder_s_cache_counts_the_layers_that_are_left():
    torch.manual_seed(1)
    gpt = GPT2Model(GPT2Config(n_layer=3, n_embd=12, n_head=2, vocab_size=40, bos_token_id=1, eos_token_id=1)).eval()
    keep_layers(gpt, [1, 2])
    first = gpt(IDS[:, :6], use_cache=True)
    assert len(first.past_key_values) == 2
    second = gpt(IDS[:, 6:], past_key_values=first.past_key_values).last_hidden_state
    torch.testing.assert_close(second, gpt(IDS).last_hidden_state[:, 6:], rtol=1e-4, atol=1e-5)


def test_a_layer_that_is_not_there_and_a_model_of_two_stacks_are_told():
    with pytest.raises(ConfigError, match=r"model.keep_layers: got \[0, 3\], expected numbers of 0 .. 2"):
        keep_layers(tiny_bert(), [0, 3])
    t5 = T5Model(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, vocab_size=40))
    with pytest.raises(ConfigError, match=r"got a model with 2 stacks of layers, expected one"):
        keep_layers(t5, [0])


def test_layers_that_know_their_place_keep_it():
    shape = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3}
    modern = ModernBertModel(ModernBertConfig(**shape, intermediate_size=16, pad_token_id=0))
    with pytest.raises(ConfigError, match=r"got \[1, 2\], expected 0 among them: ModernBERT's first has no norm"):
        keep_layers(modern, [1, 2])
    keep_layers(modern, [0, 2])
    own = {"n_layer": 3, "n_embd": 12, "n_head": 2, "vocab_size": 40, "bos_token_id": 1, "eos_token_id": 1}
    scaled = GPT2Model(GPT2Config(**own, scale_attn_by_inverse_layer_idx=True))
    with pytest.raises(ConfigError, match=r"got \[0, 2\], expected the first ones, .* scaled by the layer's number"):
        keep_layers(scaled, [0, 2])
    keep_layers(scaled, [0, 1])


def test_a_training_keeps_the_layers_and_writes_a_stock_model(world):
    save_tiny(world / "model", n_layers=3)
    finetune(tiny_config(world, model={"keep_layers": [0, 2]}, finetune={"max_steps": 2}))
    assert json.loads((world / "checkpoint/backbone/config.json").read_text())["num_hidden_layers"] == 2
    found = checkpoint.load(world / "checkpoint")
    assert (found.model().family.n_layers, found.settings.join_layer) == (2, 1)
