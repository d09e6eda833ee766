"""Number formats of training: bf16 products beside float32 weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flmrec_spark.config import FinetuneConfig
from flmrec_spark.lm.finetuning import finetune
from flmrec_spark.lm.loading import load_data
from flmrec_spark.lm.prepared import read_tables
from flmrec_spark.lm.trainer import Trainer
from tests.prepared import tiny_config


def trainer(world: Any, **finetune: Any) -> Trainer:
    config = tiny_config(world, finetune={"dropout": 0.0, "bias_dropout": 0.0, **finetune})
    prepared = read_tables(config.tables.root)
    return Trainer(config, prepared, load_data(config, prepared))


def test_gradients_of_bf16_are_those_of_float32_up_to_its_rounding(world):
    found = []
    for precision in ("fp32", "bf16"):
        own = trainer(world, precision=precision)
        own.model.rating.item_weight.data.normal_(generator=torch.Generator().manual_seed(7))
        own.model.train()
        step = next(own.steps())
        own._backward(step, step)
        found.append(torch.cat([value.grad.flatten() for value in own.model.parameters() if value.grad is not None]))
    assert {gradient.dtype for gradient in found} == {torch.float32}
    assert not torch.equal(*found)
    assert float(torch.cosine_similarity(*found, dim=0)) > 0.99


@pytest.mark.parametrize("stop", [1, 5])
def test_a_training_in_bf16_goes_on_to_the_same_bits(world, stop):
    config = tiny_config(world, finetune={"precision": "bf16", "save_every": 1, "accumulate_steps": 2})
    first = finetune(config)["digest"]
    finetune(config, force=True, stop_after=stop)
    assert finetune(config)["digest"] == first


def test_pairs_that_nothing_is_learned_from_are_not_computed(world):
    alone, ranked = (next(trainer(world, ranking_weight=weight).steps()) for weight in (0.0, 0.2))
    n_targets = alone.labels.shape[1]
    assert alone.items.shape[1] == n_targets < ranked.items.shape[1]
    assert (alone.items == ranked.items[:, :n_targets]).all()
    assert FinetuneConfig(ranking_weight=0.0).n_negatives == 0
    assert FinetuneConfig(ranking_weight=0.0, teacher="folder").n_negatives == FinetuneConfig().negatives
