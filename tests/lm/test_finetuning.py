"""Fine-tuning as a whole on a tiny separable world: it learns, resumes exactly, and leaves nothing half-written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flmrec_spark import columns as c
from flmrec_spark.errors import CheckpointError, ConfigError, EnvironmentFault, InputError
from flmrec_spark.lm import checkpoint, factor_stage, resume, trainer
from flmrec_spark.lm.families.loading import load_backbone
from flmrec_spark.lm.finetuning import finetune
from flmrec_spark.lm.loading import load_data
from flmrec_spark.lm.prepared import read_tables
from flmrec_spark.lm.trainer import Trainer
from flmrec_spark.lm.validation import Validation
from flmrec_spark.prompts import load_template
from tests.prepared import prepared_rows, tiny_config, write_prepared
from tests.tiny import save_tiny

N_STEPS = 8  # 28 examples, 8 a step, two epochs


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(checkpoint.load(folder / "checkpoint").model().state_dict())


def assert_no_checkpoint(folder: Path) -> None:
    assert not (folder / "checkpoint").exists()
    assert not (folder / "checkpoint.draft").exists()


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


@pytest.fixture(scope="module")
def unbroken(prepared_world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights of a training that nothing interrupts, with dropout, accumulation and a resume point every 3 steps."""
    folder = tmp_path_factory.mktemp("unbroken")
    for name in ("tables", "model"):
        (folder / name).symlink_to(prepared_world / name)
    finetune(tiny_config(folder, finetune=RESUMABLE))
    return weights(folder)


RESUMABLE: dict[str, object] = {"dropout": 0.2, "accumulate_steps": 2, "save_every": 3, "validate_every": 4}


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert [name for name in got if not torch.equal(got[name], expected[name])] == []


@pytest.mark.parametrize("stops", [[1], [3], [4], [5, 1], [7]])
def test_a_training_that_stops_and_goes_on_ends_with_the_same_bits(world, unbroken, stops):
    config = tiny_config(world, finetune=RESUMABLE)
    for stop_after in stops:
        assert finetune(config, stop_after=stop_after)["status"] == "stopped"
        assert_no_checkpoint(world)
    assert finetune(config)["status"] == "done"
    assert_same(weights(world), unbroken)
    assert not (world / "checkpoint.training").exists()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_state_of_the_optimizer_comes_back(world, optimizer):
    config = tiny_config(world, finetune={"optimizer": optimizer, "save_every": 1})
    first = finetune(config)["digest"]
    finetune(config, force=True, stop_after=5)
    assert finetune(config)["digest"] == first


def test_a_kill_between_a_save_and_its_note_is_survived(world, unbroken):
    config = tiny_config(world, finetune=RESUMABLE)
    finetune(config, stop_after=4)
    folder = world / "checkpoint.training"
    (folder / "step-6.safetensors").write_bytes(b"half")
    (folder / "progress.draft").write_text('{"step": 6')
    (folder / "best.draft").write_bytes(b"half")
    finetune(config)
    assert_same(weights(world), unbroken)


def test_a_kill_after_the_last_step_goes_on_to_the_checkpoint(world, unbroken, monkeypatch):
    config = tiny_config(world, finetune=RESUMABLE)

    def killed(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            finetune(config)
    assert_no_checkpoint(world)
    monkeypatch.setattr(Trainer, "learn", killed)  # nothing is left to learn
    assert finetune(config)["status"] == "done"
    assert_same(weights(world), unbroken)


def test_what_another_training_left_is_not_used(world, unbroken):
    finetune(tiny_config(world, finetune={**RESUMABLE, "seed": 9}), stop_after=4)
    finetune(tiny_config(world, finetune=RESUMABLE))
    assert_same(weights(world), unbroken)


def test_a_call_that_stops_leaves_its_work_to_the_next_whatever_is_saved_besides(world):
    config = tiny_config(world, finetune={"save_every": None, "validate_every": None})
    assert finetune(config, stop_after=2) == {"status": "stopped", "step": 2, "rank": 0}
    assert finetune(config, stop_after=1)["step"] == 3
    assert finetune(config)["steps"] > 3


def test_a_resumed_training_keeps_the_number_format_that_it_began_with(world, monkeypatch):
    config = tiny_config(world, finetune={"precision": "auto"})
    monkeypatch.setattr(trainer, "resolve", lambda *_, **__: "fp32")
    finetune(config, stop_after=4)
    monkeypatch.setattr(trainer, "resolve", lambda *_, **__: "bf16")
    assert finetune(config)["precision"] == "fp32"


def test_so_does_one_with_an_adapter_whose_frozen_weights_bf16_would_round(world, monkeypatch):
    load_backbone(world / "model").bfloat16().save_pretrained(world / "model")
    config = tiny_config(world, finetune={"precision": "auto", "adapter": {"method": "lora", "rank": 2}})
    monkeypatch.setattr(trainer, "resolve", lambda *_, **__: "fp32")
    first = finetune(config)["digest"]
    finetune(config, force=True, stop_after=2)
    monkeypatch.setattr(trainer, "resolve", lambda *_, **__: "bf16")
    assert finetune(config)["digest"] == first


def test_a_damaged_resume_point_is_named_and_force_starts_anew(world):
    config = tiny_config(world, finetune=RESUMABLE)
    finetune(config, stop_after=4)
    for file in (world / "checkpoint.training").glob("step-*"):
        file.write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"checkpoint.training: resume point not usable, --force starts anew"):
        finetune(config)
    assert finetune(config, force=True)["status"] == "done"


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


def without_valid(world: Path) -> None:
    rows = prepared_rows()
    rows["examples"] = [row for row in rows["examples"] if row[c.SPLIT] != c.VALID]
    write_prepared(world / "tables", rows)


def test_nothing_to_validate_on_is_told_and_nothing_is_written(world):
    without_valid(world)
    with pytest.raises(InputError, match=r"table examples: got no usable row of split valid, expected some"):
        finetune(tiny_config(world))
    assert_no_checkpoint(world)


@pytest.mark.parametrize(
    ("sections", "error", "told"),
    [
        ({"tables": {"root": "nowhere"}}, InputError, "table interactions: not found"),
        ({"model": {"path": "nowhere"}}, CheckpointError, "nowhere: got no folder, expected a pretrained model"),
        ({"model": {"join_layer": 9}}, ConfigError, r"model.join_layer: got 9, expected 0 .. 2"),
        ({"prompts": {"user_tokens": 120}}, ConfigError, r"user_tokens \+ item_tokens = 160, expected at most"),
        ({"model": {"head": "answer"}}, ConfigError, "model.head: got answer, expected linear"),
        (
            {"finetune": {"adapter": {"method": "adalora"}, "max_steps": 2}},
            ConfigError,
            "finetune.adapter.method: got adalora with 2 steps",
        ),
        ({"prompts": {"template": "nowhere"}}, ConfigError, r"prompts.template: got nowhere, expected one of en, zh"),
    ],
)
def test_what_does_not_fit_is_told_and_nothing_is_written(world, sections, error, told, monkeypatch):
    monkeypatch.setattr(factor_stage, "fitted", lambda *_: pytest.fail("factors were learned before"))
    with pytest.raises(error, match=told):
        finetune(tiny_config(world, **sections))
    assert_no_checkpoint(world)


def test_a_training_that_diverges_says_so(world, monkeypatch):
    monkeypatch.setattr(Trainer, "_backward", lambda *_: float("nan"))
    told = (
        r"finetune: step 1 of \d+ had a loss of nan and a gradient of .*, expected numbers: .* lower finetune.learning_"
    )
    with pytest.raises(ConfigError, match=told):
        finetune(tiny_config(world))
    assert_no_checkpoint(world)


def test_a_gradient_that_is_no_number_is_told_before_it_spoils_the_weights(world, monkeypatch):
    real = Trainer._backward

    def spoilt(self, *given):
        value = real(self, *given)
        next(self.model.parameters()).grad[:] = float("inf")
        return value

    monkeypatch.setattr(Trainer, "_backward", spoilt)
    with pytest.raises(ConfigError, match=r"finetune: step 1 of \d+ had a loss of \d.* and a gradient of inf"):
        finetune(tiny_config(world))
    assert_no_checkpoint(world)


def test_too_little_memory_of_a_cpu_is_told_with_what_takes_less(world, monkeypatch):
    def refused(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9000000000 bytes")

    monkeypatch.setattr(Trainer, "_backward", refused)
    with pytest.raises(
        EnvironmentFault, match=r"finetune: out of memory with finetune.examples_per_step = 8 in 1 parts"
    ):
        finetune(tiny_config(world))
    assert_no_checkpoint(world)


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


def test_a_folder_that_is_no_checkpoint_is_refused_before_the_training(world, monkeypatch):
    (world / "checkpoint").mkdir()
    (world / "checkpoint/notes.txt").write_text("mine")
    monkeypatch.delattr(Trainer, "learn")
    with pytest.raises(CheckpointError, match="something that is no checkpoint"):
        finetune(tiny_config(world))
    assert (world / "checkpoint/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("content", [None, "{", "[1]", '{"step": 3}'])
def test_an_unreadable_resume_point_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "progress.json").write_text(content)
    assert resume.progress_of(tmp_path) == {}
