"""Adapters: what trains, what is saved, and that a merged model is the adapted one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModel, GPT2Config, GPT2Model

from flmrec_spark.config import AdapterConfig
from flmrec_spark.errors import ConfigError
from flmrec_spark.lm import adapters, checkpoint, manifest
from flmrec_spark.lm.adapters import Adapter
from flmrec_spark.lm.families.loading import load_backbone
from flmrec_spark.lm.finetuning import finetune
from flmrec_spark.lm.loading import load_data
from flmrec_spark.lm.prepared import read_tables
from flmrec_spark.lm.trainer import Trainer
from tests.prepared import tiny_config
from tests.tiny import ENCODER_DECODERS, FAMILIES, save_family, tiny_bert, tiny_family

# peft asks a transformers model for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
METHODS = ["lora", "dora", "adalora"]
LONG = {"epochs": 3}  # 12 steps


def adapted(method: str, backbone: nn.Module | None = None, **settings: Any) -> tuple[nn.Module, Adapter]:
    """A backbone with an adapter whose every parameter has moved away from its start."""
    backbone = backbone or tiny_bert(n_layers=2)
    own = Adapter(backbone, AdapterConfig(method=method, **settings), folder="m", n_steps=30)
    draw = torch.Generator().manual_seed(3)
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
    return backbone.eval(), own


@pytest.mark.parametrize("method", METHODS)
@torch.inference_mode()
def test_the_merged_model_is_a_stock_one_with_the_outputs_of_the_adapted(method, tmp_path):
    ids = torch.arange(5, 25).view(2, 10)
    before = tiny_bert(n_layers=2)(ids).last_hidden_state
    backbone, own = adapted(method)
    expected = backbone(ids).last_hidden_state
    assert float((expected - before).abs().max()) > 1e-2
    own.save(tmp_path / "adapter")
    adapters.merge(backbone)
    assert set(backbone.state_dict()) == set(tiny_bert(n_layers=2).state_dict())
    torch.testing.assert_close(backbone(ids).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    backbone.save_pretrained(tmp_path / "stock")
    stock = AutoModel.from_pretrained(tmp_path / "stock", add_pooling_layer=False)
    torch.testing.assert_close(stock(ids).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    again = PeftModel.from_pretrained(tiny_bert(n_layers=2), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(again(ids).last_hidden_state, expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_decoder_s_products_are_found_too():
    torch.manual_seed(1)
    gpt = GPT2Model(
        GPT2Config(n_layer=2, n_embd=12, n_head=2, vocab_size=40, n_positions=16, bos_token_id=1, eos_token_id=1)
    ).eval()
    ids = torch.arange(5, 15)[None]
    n_products = adapters.n_parameters(gpt, AdapterConfig(method="lora", rank=1))
    assert n_products == 2 * ((12 + 36) + (12 + 12) + 2 * (12 + 48))
    backbone, _ = adapted("lora", gpt)
    expected = backbone(ids).last_hidden_state
    adapters.merge(backbone)
    torch.testing.assert_close(backbone(ids).last_hidden_state, expected, rtol=1e-5, atol=1e-5)


def test_the_modules_of_an_adapter_can_be_named_and_a_wrong_name_is_told():
    backbone, _ = adapted("lora", modules=["self.query", "intermediate.dense"])
    names = {name.partition(".lora_")[0] for name, value in backbone.named_parameters() if value.requires_grad}
    assert {name.rpartition("layer.")[2] for name in names} == {
        f"{layer}.{name}" for layer in (0, 1) for name in ("attention.self.query", "intermediate.dense")
    }
    with pytest.raises(ConfigError, match=r"finetune.adapter.modules: got quer, expected .* such as dense, key, query"):
        adapted("lora", modules=["quer"])


def test_adalora_needs_some_steps_to_plan_its_cuts(world):
    with pytest.raises(ConfigError, match=r"finetune.adapter.method: got adalora with 8 steps, expected 10"):
        finetune(tiny_config(world, finetune={"adapter": {"method": "adalora"}}))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_the_adapter_the_head_and_the_biases_train(world, method, precision):
    config = tiny_config(world, finetune={**LONG, "precision": precision, "adapter": {"method": method, "rank": 2}})
    prepared = read_tables(config.tables.root)
    own = Trainer(config, prepared, load_data(config, prepared))
    before = {name: value.clone() for name, value in own.model.named_parameters()}
    n_backbone = sum(value.numel() for value in own.model.backbone.parameters() if value.requires_grad)
    per_rank = adapters.n_parameters(load_backbone(world / "model"), AdapterConfig(method="lora", rank=1))
    n_products, magnitudes = 12, 2 * (4 * 32 + 64 + 32)  # dora: a magnitude for each output
    expected = {"lora": 2 * per_rank, "dora": 2 * per_rank + magnitudes, "adalora": 3 * per_rank + 3 * n_products}
    assert n_backbone == expected[method]
    for step in own.steps():
        own.learn(step)
    changed = {name for name, value in own.model.named_parameters() if not torch.equal(value, before[name])}
    changed = {name for name in changed if "lora_E" not in name}  # of a cut rank it ends where it began, at 0
    trained = {name for name in before if "lora_A" in name or "lora_B" in name or "lora_magnitude" in name}
    assert {name for name in changed if name.startswith("backbone.")} == trained
    assert "rating.item_weight" in changed


def test_adalora_ends_with_the_rank_that_was_asked_for(world):
    settings = {**LONG, "adapter": {"method": "adalora", "rank": 2}}
    config = tiny_config(world, finetune=settings)
    prepared = read_tables(config.tables.root)
    own = Trainer(config, prepared, load_data(config, prepared))
    for step in own.steps():
        own.learn(step)
    ranks = [int((value != 0).sum()) for name, value in own.model.named_parameters() if "lora_E" in name]
    assert len(ranks) == 12
    assert sum(ranks) == 2 * len(ranks)


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_holds_the_merged_model_and_the_adapter_under_its_manifest(world, method):
    config = tiny_config(world, finetune={**LONG, "adapter": {"method": method, "rank": 2}})
    finetune(config)
    folder = world / "checkpoint"
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= set(manifest.files(folder))
    found = checkpoint.load(folder).model().backbone
    base = load_backbone(world / "model")
    assert set(found.state_dict()) == set(base.state_dict())
    again = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()
    ids = torch.arange(5, 25).view(2, 10)
    with torch.inference_mode():
        expected: Any = found(ids).last_hidden_state
        torch.testing.assert_close(again(ids).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    assert json.loads((folder / "adapter/adapter_config.json").read_text())["peft_type"] == (
        "ADALORA" if method == "adalora" else "LORA"
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
@torch.inference_mode()
def test_every_family_s_products_are_adapted_and_merged(family, method):
    inputs = {"input_ids": torch.arange(5, 25).view(2, 10)}
    inputs |= {"decoder_input_ids": inputs["input_ids"]} if family in ENCODER_DECODERS else {}
    before = tiny_family(family)(**inputs).last_hidden_state
    backbone, _ = adapted(method, tiny_family(family))
    expected = backbone(**inputs).last_hidden_state
    assert float((expected - before).abs().max()) > 1e-3
    adapters.merge(backbone)
    assert set(backbone.state_dict()) == set(tiny_family(family).state_dict())
    torch.testing.assert_close(backbone(**inputs).last_hidden_state, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("is_published_in_bf16", [True, False])
def test_frozen_weights_are_kept_in_bf16_only_where_that_changes_nothing(
    world, method, is_published_in_bf16, monkeypatch
):
    model = load_backbone(world / "model")
    if is_published_in_bf16:
        model.bfloat16().save_pretrained(world / "model")
    settings = {**LONG, "precision": "bf16", "adapter": {"method": method, "rank": 2}}
    config = tiny_config(world, finetune=settings)
    own = Trainer(config, prepared := read_tables(config.tables.root), load_data(config, prepared))
    kinds = {value.dtype for name, value in own.model.named_parameters() if "base_layer.weight" in name}
    assert kinds == {torch.bfloat16 if is_published_in_bf16 and method != "dora" else torch.float32}
    assert {value.dtype for value in own.served().parameters()} == {torch.float32}
    digest = finetune(config)["digest"]
    monkeypatch.setattr(Adapter, "round_frozen", lambda self: None)
    assert finetune(config, force=True)["digest"] == digest  # to the last bit


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [5, 9])
def test_a_training_with_an_adapter_goes_on_to_the_same_checkpoint(world: Path, method: str, stop: int):
    settings = {**LONG, "save_every": 1, "adapter": {"method": method, "rank": 2, "dropout": 0.1}}
    config = tiny_config(world, finetune=settings)
    first = finetune(config)["digest"]
    finetune(config, force=True, stop_after=stop)
    state = world / "checkpoint.training"
    assert max(file.stat().st_size for file in state.glob("step-*")) < 400_000
    assert finetune(config)["digest"] == first


@pytest.mark.parametrize("join", ["attention", "layer"])
def test_adalora_trains_where_a_join_skips_some_products(world: Path, join: str):
    """Cross-attention below the join and the last feed-forward get no gradient."""
    for file in (world / "model").iterdir():
        file.unlink()
    save_family(world / "model", "t5", n_layers=2)
    settings = {**LONG, "adapter": {"method": "adalora", "rank": 2}}
    config = tiny_config(world, f"model.join={join}", "prompts.item_tokens=32", finetune=settings)
    assert finetune(config)["status"] == "done"
    told = json.loads((world / "checkpoint/adapter/adapter_config.json").read_text())["target_modules"]
    assert told == sorted(told) and len(told) > 5  # the same file from every process
