"""Number formats of training: bf16 products beside float32 weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flmrec_spark.config import FinetuneConfig
from flmrec_spark.lm import training
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


def test_logits_start_at_the_level_that_bias_terms_are_relative_to(world):
    own = trainer(world)
    assert own.start is not None
    assert own.model.rating.offset.item() == pytest.approx(own.start.level) != 0.0
    step = next(own.steps())
    labels = torch.from_numpy(step.labels[step.is_observed])
    logits, _ = training.step_logits(own.model.eval(), own.bias.eval(), step, own.data.catalog.tokens, bias_dropout=0.0)
    shown = torch.sigmoid(logits.detach()[:, : step.labels.shape[1]][torch.from_numpy(step.is_observed)])
    assert float(shown.mean()) == pytest.approx(float(labels.mean()), abs=0.2)


def test_what_is_not_defined_where_all_is_liked_gives_way_to_the_lists(world, caplog):
    own, nan = trainer(world), float("nan")
    found = [own.is_best({"auc": nan, "uauc": nan, "log_loss": 0.3, "ndcg": ndcg}) for ndcg in (0.2, 0.4, 0.3)]
    assert (found, own.stopping.n_worse, own.stopping.best) == ([True, True, False], 1, 0.4)
    assert "uauc is not defined on the valid split: it is stopped early by ndcg" in caplog.text


def test_the_loss_since_the_validation_before_is_in_the_history(world):
    own = trainer(world)
    own.losses += [0.5, 0.7]
    for value in (0.6, 0.7):
        own.is_best({"auc": value, "uauc": value, "log_loss": 0.3, "ndcg": value})
    assert [one.get("loss") for one in own.history] == [pytest.approx(0.6), None]
