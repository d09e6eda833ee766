"""bf16 training: float32 weights take the updates of a bfloat16 copy, which goes on exactly after a stop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flmrec_spark.lm import checkpoint
from flmrec_spark.lm.dataset import read_tables
from flmrec_spark.lm.finetuning import finetune
from flmrec_spark.lm.loading import load_data
from flmrec_spark.lm.trainer import Trainer
from flmrec_spark.lm.working import WorkingCopy
from tests.lm.test_training import segmented
from tests.prepared import tiny_config


def trainer(world: Any, **finetune: Any) -> Trainer:
    config = tiny_config(world, finetune={"precision": "bf16", "dropout": 0.0, **finetune})
    prepared = read_tables(config.tables.root)
    return Trainer(config, prepared, load_data(config, prepared))


def test_the_copy_computes_in_bfloat16_and_its_gradients_add_up_in_float32():
    master = segmented("layer", 1)
    own = WorkingCopy(master)
    weight = master.backbone.encoder.layer[0].output.dense.weight
    weight.data += 1e-4  # less than bfloat16 can hold beside it
    copy = own.refresh().backbone.encoder.layer[0].output.dense.weight
    assert copy.dtype == torch.bfloat16
    assert torch.equal(copy, weight.bfloat16())
    for _ in range(2):
        copy.grad = torch.full_like(copy, 0.1)
        own.collect()
    assert weight.grad.dtype == torch.float32
    torch.testing.assert_close(weight.grad, torch.full_like(weight, 2 * 0.1).bfloat16().float(), rtol=1e-2, atol=0)
    assert copy.grad is None


def test_gradients_are_those_of_float32_up_to_bfloat16_s_rounding(world):
    found = []
    for precision in ("fp32", "bf16"):
        own = trainer(world, precision=precision, bias_dropout=0.0)
        own.model.item_weight.data.normal_(generator=torch.Generator().manual_seed(7))
        own.model.train()
        step = next(own.steps())
        own._backward(step, step)
        found.append(torch.cat([value.grad.flatten() for value in own.model.parameters() if value.grad is not None]))
    assert {gradient.dtype for gradient in found} == {torch.float32}
    assert float(torch.cosine_similarity(*found, dim=0)) > 0.99
    assert 0.95 < float(found[1].norm() / found[0].norm()) < 1.05


def test_the_weights_that_train_and_are_saved_are_float32(world):
    own = trainer(world)
    for step in own.steps():
        own.learn(step)
    weights = own.model.backbone.state_dict().values()
    assert {weight.dtype for weight in weights if weight.is_floating_point()} == {torch.float32}
    moved = own.model.backbone.encoder.layer[0].output.dense.weight
    assert not torch.equal(moved, moved.bfloat16().float())


@pytest.mark.parametrize("stop", [1, 5])
def test_a_training_in_bf16_goes_on_to_the_same_bits(world, stop):
    config = tiny_config(world, finetune={"precision": "bf16", "save_every": 1, "accumulate_steps": 2})
    first = finetune(config)["digest"]
    finetune(config, force=True, stop_after=stop)
    assert finetune(config)["digest"] == first
    assert checkpoint.load(world / "checkpoint").digest == first


def test_bf16_learns_what_float32_learns(world):
    learns = {"epochs": 30, "learning_rate": 3e-3, "dropout": 0.0, "ranking_weight": 0.0}
    stops = {"early_stopping": {"metric": "auc", "patience": 1000}, "precision": "bf16"}
    done: Any = finetune(tiny_config(world, finetune={**learns, **stops}, model={"bias_terms": False}))
    assert done["validation"]["auc"] > 0.9
