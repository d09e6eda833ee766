"""The estimate of a training's memory, beside what torch keeps, and what is said when it does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from flmrec_spark.errors import CheckpointError, EnvironmentFault
from flmrec_spark.lm import preflight as memory
from flmrec_spark.lm import starting, trainer, training
from flmrec_spark.lm.families.loading import load_backbone
from flmrec_spark.lm.finetuning import finetune
from flmrec_spark.lm.loading import load_data, load_segmenter
from flmrec_spark.lm.preflight import estimate, step_shape
from flmrec_spark.lm.prepared import read_tables
from flmrec_spark.lm.trainer import Trainer
from tests.prepared import tiny_config
from tests.tiny import FAMILIES, FULL_ONLY, save_family

CPU = torch.device("cpu")
FORMS: list[dict[str, object]] = [{"join_layer": 0}, {"join_layer": 1}, {"join_layer": 2}, {"join": "full"}]


def shape_of(config: Any, n_processes: int = 1) -> Any:
    data = load_data(config, read_tables(config.tables.root))
    return step_shape(config, data.train, data.catalog, n_processes)


def kept(own: Trainer) -> int:
    """Bytes that torch keeps of a step for its backward pass, without the weights."""
    found: dict[int, int] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), training.attention("cpu"):
        tokens = own.data.catalog.tokens
        logits, _ = training.step_logits(own.model, own.bias, next(own.steps()), tokens, bias_dropout=0.0)
    assert logits.requires_grad
    weights = {weight.untyped_storage().data_ptr() for weight in own.model.parameters()}
    return sum(size for place, size in found.items() if place not in weights)


@pytest.mark.parametrize("method", ["none", "lora"])
def test_weights_gradients_and_moments_are_counted_to_the_byte(world, method):
    config = tiny_config(world, finetune={"adapter": {"method": method, "rank": 2}})
    found = estimate(config, shape_of(config), precision="fp32")
    prepared = read_tables(config.tables.root)
    own = Trainer(config, prepared, load_data(config, prepared))
    weights = list(own.model.backbone.parameters())
    n_all = sum(weight.numel() for weight in weights)
    n_trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    pooler = 32 * 32 + 32  # is in the folder's architecture, but not loaded
    assert found.weights == pytest.approx(4 * (n_all + pooler))
    trained = n_trained + (pooler if method == "none" else 0)
    assert (found.gradients, found.optimizer) == (4 * trained, 8 * trained)


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_of_every_family_are_estimated_within_a_factor_of_two(world, family):
    for file in (world / "model").iterdir():
        file.unlink()
    save_family(world / "model", family, n_layers=2)
    form: dict[str, object] = {"join": "full"} if family in FULL_ONLY else {}
    settings: dict[str, object] = {"dropout": 0.0, "examples_per_step": 16}
    config = tiny_config(world, "prompts.item_tokens=32", model=form, finetune=settings)
    prepared = read_tables(config.tables.root)
    data = load_data(config, prepared)
    own = Trainer(config, prepared, data)
    own.model.train()
    assert 0.5 < 4 * memory.activation_floats(own.model.backbone.config, shape_of(config), config) / kept(own) < 2.0


@pytest.mark.parametrize(
    ("model", "is_lean"),  # a lean `full` needs most while it computes a layer again, which is not kept
    [(model, is_lean) for model in FORMS for is_lean in (False, True) if not (is_lean and "join" in model)],
)
def test_activations_are_estimated_within_a_factor_of_two(world, model, is_lean):
    settings = {"dropout": 0.0, "gradient_checkpointing": is_lean, "examples_per_step": 16}
    config = tiny_config(world, model=model, finetune=settings)
    prepared = read_tables(config.tables.root)
    data = load_data(config, prepared)
    own = Trainer(config, prepared, data)
    own.model.train()
    measured = kept(own)
    floats = memory.activation_floats(own.model.backbone.config, shape_of(config), config)
    assert 0.5 < 4 * floats / measured < 2.0


def test_an_adapter_s_frozen_products_take_half_where_they_were_published_in_bf16(world):
    def weights(method: str, precision: str) -> float:
        config = tiny_config(world, finetune={"adapter": {"method": method, "rank": 2}})
        return estimate(config, shape_of(config), precision=precision).weights

    plain, n_products = weights("lora", "fp32"), 2 * (4 * 32 * 32 + 2 * 32 * 64)
    assert weights("lora", "bf16") == plain + 4 * n_products  # rounded for the users and for the items
    load_backbone(world / "model").bfloat16().save_pretrained(world / "model")
    assert weights("lora", "bf16") == plain - 2 * n_products
    assert weights("dora", "bf16") == weights("dora", "fp32") + 4 * n_products


def test_a_teacher_s_weights_are_counted(world):
    finetune(tiny_config(world, finetune={"max_steps": 1}))
    own = tiny_config(world, finetune={"teacher": str(world / "checkpoint")})
    more, alone = (estimate(config, shape_of(own), precision="fp32") for config in (own, tiny_config(world)))
    assert more.weights == 2 * alone.weights


def test_parts_and_processes_share_a_step(world):
    whole = shape_of(tiny_config(world))
    parts = shape_of(tiny_config(world, finetune={"accumulate_steps": 2}))
    shared = shape_of(tiny_config(world), 2)
    assert parts == shared
    assert (parts.user_tokens, parts.pairs) == (whole.user_tokens / 2, whole.pairs / 2)


def test_a_training_that_does_not_fit_is_refused_before_its_weights_are_read(world, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 100_000.0)
    monkeypatch.setattr(trainer, "build_model", lambda *_: pytest.fail("weights were read"))
    told = (
        r"memory: estimated 0\.00 GiB \(weights .*, gradients .*, optimizer .*, activations .*\) for a process, "
        r"got 0\.00 GiB free on cpu, expected enough: raise finetune.accumulate_steps above 1, or set "
        r"finetune.gradient_checkpointing: true, or set finetune.adapter.method: lora, or set finetune.precision: bf16"
    )
    with pytest.raises(EnvironmentFault, match=told):
        finetune(tiny_config(world))
    assert not (world / "checkpoint").exists()


def test_what_is_set_already_is_not_advised_again(world, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 100_000.0)
    own = {"gradient_checkpointing": True, "adapter": {"method": "lora"}, "precision": "bf16", "accumulate_steps": 4}
    with pytest.raises(EnvironmentFault, match=r"raise finetune.accumulate_steps above 4; finetune.memory_check: warn"):
        finetune(tiny_config(world, finetune=own))


def test_it_can_be_tried_all_the_same(world, monkeypatch, caplog):
    monkeypatch.setattr(memory, "available", lambda device: 100_000.0)
    assert finetune(tiny_config(world, finetune={"memory_check": "warn"}))["status"] == "done"
    assert "memory: estimated" in caplog.text


def test_the_free_memory_is_that_of_the_machine_or_less(monkeypatch, tmp_path):
    free = memory.available(CPU)
    assert 1e6 < free <= memory._free_of_machine()
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    assert memory._free_of_cgroup(tmp_path) == 2_500_000
    (tmp_path / "memory.stat").write_text(
        "inactive_file 400000\nrss 1\ntotal_inactive_file 500000\n"
    )  # the first version
    assert memory._free_of_cgroup(tmp_path) == 2_500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._free_of_cgroup(tmp_path) == np.inf
    assert memory._free_of_cgroup(Path(tmp_path / "none")) == np.inf


def test_the_model_of_the_estimate_allocates_nothing(world):
    config = tiny_config(world, model={"keep_layers": [1]})
    backbone = memory.meta_model(config)
    assert {weight.device.type for weight in backbone.parameters()} == {"meta"}
    kept = {name for name, _ in backbone.named_parameters() if not name.startswith("pooler")}
    assert kept == {
        name for name, _ in starting.build_model(config, load_segmenter(config)).backbone.named_parameters()
    }


@pytest.mark.parametrize("family", ["t5", "gpt2", "distilbert"])
def test_a_wider_feed_forward_takes_more_memory_by_whatever_name_it_goes(world, family):
    for file in (world / "model").iterdir():
        file.unlink()
    save_family(world / "model", family, n_layers=2)
    file = world / "model/config.json"
    told = json.loads(file.read_text())
    name = {"t5": "d_ff", "gpt2": "n_inner", "distilbert": "hidden_dim"}[family]
    config, found = tiny_config(world, "prompts.item_tokens=32"), []
    model = transformers.AutoConfig.from_pretrained(world / "model")
    shape = shape_of(config)
    for width in (48, 4800):
        file.write_text(json.dumps(told | {name: width}))
        model = transformers.AutoConfig.from_pretrained(world / "model")
        found.append(memory.activation_floats(model, shape, config))
    assert found[1] > 10 * found[0]


def test_a_tokenizer_that_knows_more_than_its_model_is_told_of(world):
    file = world / "model/config.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told | {"vocab_size": 20}))
    with pytest.raises(CheckpointError, match=r"the tokenizer gives token .* but the model has 20 of them"):
        load_data(tiny_config(world), read_tables(str(world / "tables")))
