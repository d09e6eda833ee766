"""Fine-tuning as a whole on a tiny separable world: it learns, resumes exactly, and leaves nothing half-written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flmrec_spark import columns as c
from flmrec_spark.errors import CheckpointError
from flmrec_spark.lm import checkpoint, trainer
from flmrec_spark.lm.finetuning import finetune
from flmrec_spark.lm.loading import load_data
from flmrec_spark.lm.prepared import read_tables
from flmrec_spark.lm.trainer import Trainer
from flmrec_spark.lm.validation import Validation
from flmrec_spark.prompts import load_template
from tests.lm.trained import N_STEPS, RESUMABLE, assert_same, weights
from tests.prepared import prepared_rows, tiny_config, write_prepared
from tests.tiny import save_tiny


def test_it_learns_what_a_separable_world_teaches(world, monkeypatch):
    losses, learn = [], Trainer.learn

    def noted(self: Trainer, step: Any) -> float:
        losses.append(learn(self, step))
        return losses[-1]

    monkeypatch.setattr(Trainer, "learn", noted)
    learns = {"epochs": 60, "learning_rate": 3e-3, "dropout": 0.0, "ranking_weight": 0.0}
    stops = {"early_stopping": {"metric": "auc", "patience": 1000}}
    done = finetune(tiny_config(world, finetune={**learns, **stops}, model={"bias_terms": False}))
    history: Any = done["history"]
    best: Any = done["validation"]
    assert sum(losses[-8:]) < 0.5 * sum(losses[:8])
    assert history[0]["auc"] < 0.7
    assert best["auc"] > 0.9
    assert best["auc"] == max(entry["auc"] for entry in history)
    assert best["log_loss"] < history[0]["log_loss"]
    assert checkpoint.read_metrics(world / "checkpoint")["validation"] == best


def test_a_finished_training_is_left_as_it_is_and_force_makes_it_again(world):
    config = tiny_config(world)
    first = finetune(config)
    made = (world / "checkpoint/manifest.json").stat().st_mtime_ns
    again = finetune(config)
    assert (again["status"], again["digest"]) == ("already done", first["digest"])
    assert (world / "checkpoint/manifest.json").stat().st_mtime_ns == made
    forced = finetune(config, force=True)
    assert (forced["status"], forced["digest"]) == ("done", first["digest"])


def test_what_a_kill_behind_the_checkpoint_left_is_cleared(world, monkeypatch):
    config = tiny_config(world, finetune=RESUMABLE)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        finetune(config)
    (world / "checkpoint.previous").mkdir()
    assert (world / "checkpoint.training").exists()
    assert finetune(config)["status"] == "already done"
    assert not (world / "checkpoint.training").exists() and not (world / "checkpoint.previous").exists()
    finetune(tiny_config(world, finetune={**RESUMABLE, "seed": 9}), force=True, stop_after=4)
    assert finetune(config)["status"] == "already done"
    assert (world / "checkpoint.training").exists()  # of another training, which may go on


def change_setting(world: Path) -> dict[str, object]:
    return {"finetune": {"weight_decay": 0.5}}


def change_pretrained(world: Path) -> dict[str, object]:
    save_tiny(world / "model", seed=2, n_layers=2)  # of the same size
    return {}


def change_tables(world: Path) -> dict[str, object]:
    rows = prepared_rows()
    for row in rows["users"]:
        row["group"] = "z"
    for table in (world / "tables").iterdir():
        table.rename(world / f"old {table.name}")
    write_prepared(world / "tables", rows)  # anew: its versions count from 0 again
    return {}


def change_template(world: Path) -> dict[str, object]:
    file = world / "own.yaml"
    file.write_text(file.read_text().replace(" liked {title}", " likes {title}"))
    return {}


@pytest.mark.parametrize("change", [change_setting, change_pretrained, change_tables, change_template])
def test_whatever_training_depends_on_makes_it_train_again(world, change):
    (world / "own.yaml").write_text(load_template("en").to_yaml())
    own = {"prompts": {"template": str(world / "own.yaml")}}
    first = finetune(tiny_config(world, **own))
    second = finetune(tiny_config(world, **own, **change(world)))
    assert second["status"] == "done"
    assert second["fingerprint"] != first["fingerprint"]


def test_a_damaged_checkpoint_is_not_already_done_and_force_replaces_it(world, flip):
    config = tiny_config(world)
    finetune(config)
    flip(world / "checkpoint/head.safetensors", -1)
    with pytest.raises(CheckpointError, match=r"head.safetensors: damaged"):
        finetune(config)
    (world / "checkpoint/metrics.json").write_text("{")
    assert finetune(config, force=True)["status"] == "done"


def test_early_stopping_stops_and_the_best_weights_win(world, monkeypatch):
    values, at_best, real = iter([0.6, 0.9, 0.8, 0.7, 0.9]), {}, Trainer.validate

    def told(self: Trainer) -> Validation:
        found, value = real(self), next(values)
        if value == 0.9 and not at_best:
            at_best.update({name: weight.clone() for name, weight in self.model.state_dict().items()})
        return replace(found, metrics={**found.metrics, "auc": value})

    monkeypatch.setattr(Trainer, "validate", told)
    stopping = {"early_stopping": {"metric": "auc", "patience": 2}, "validate_every": 1}
    done = finetune(tiny_config(world, finetune=stopping))
    history: Any = done["history"]
    assert [entry["step"] for entry in history] == [1, 2, 3, 4]
    assert_same(weights(world), at_best)


@pytest.mark.parametrize(("metric", "values", "best"), [("log_loss", [0.7, 0.5, 0.6], 2), ("ndcg", [0.7, 0.5, 0.6], 1)])
def test_the_better_value_is_the_lower_log_loss_and_the_higher_of_others(world, metric, values, best):
    config = tiny_config(world, finetune={"early_stopping": {"metric": metric}})
    prepared = read_tables(config.tables.root)
    own = Trainer(config, prepared, load_data(config, prepared))
    found = [own.is_best({metric: value}) for value in values]
    assert max(at + 1 for at, is_best in enumerate(found) if is_best) == best
    assert own.stopping.n_worse == len(values) - best


@pytest.mark.parametrize("model", [{"join_layer": 0}, {"join_layer": 2}, {"join": "attention"}, {"join": "full"}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_form_trains_and_is_served_as_it_was_validated(world, model, precision):
    done = finetune(tiny_config(world, model=model, finetune={"max_steps": 2, "precision": precision}))
    found = checkpoint.load(world / "checkpoint")
    assert found.settings.join == model.get("join", "layer")
    assert done["steps"] == 2
    assert found.model().family.n_layers == 2


def test_steps_end_where_the_training_does_however_many_epochs_were_asked_for(world, monkeypatch):
    orders = []
    real = trainer.epoch_order
    monkeypatch.setattr(trainer, "epoch_order", lambda *given, **named: orders.append(named) or real(*given, **named))
    config = tiny_config(world, finetune={"epochs": 1000, "max_steps": 3})
    assert finetune(config)["steps"] == 3
    assert len(orders) <= 2


def test_a_long_epoch_is_validated_and_saved_on_the_way(world, monkeypatch):
    monkeypatch.setattr(trainer, "VALIDATE_EVERY", 2)
    config = tiny_config(world, finetune={"max_steps": 5, "epochs": 1, "examples_per_step": 1, "validate_every": None})
    assert [entry["step"] for entry in finetune(config)["history"]] == [2, 4, 5]


def test_only_liked_rows_train_and_the_undefined_metric_is_told(world, caplog):
    rows = prepared_rows()
    for row in rows["examples"]:
        for entry in row[c.TARGETS]:
            entry[c.IS_LIKED] = True
    write_prepared(world / "tables", rows)
    assert finetune(tiny_config(world))["steps"] == N_STEPS
    assert "uauc is not defined on the valid split" in caplog.text


def test_no_user_or_item_is_named_in_a_log_or_in_the_metrics(world, caplog):
    caplog.set_level("INFO")
    done = finetune(tiny_config(world))
    told = caplog.text + json.dumps(done)
    assert "用户 甲" not in told
    assert "it'em" not in told
