"""The search over settings: what it may search, what it keeps, and that it goes on where it was."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest

from flmrec_spark.config import load_config
from flmrec_spark.errors import CheckpointError, ConfigError, ConflictError, EnvironmentFault
from flmrec_spark.lm import folders, tuning
from tests.prepared import tiny_config

SPACE = {"finetune.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "finetune.max_steps": [1, 2]}


def config_file(world: Path, space: object = SPACE, **tune: object) -> str:
    tiny_config(world, tune={"space": space, "trials": 2, "metric": "log_loss", **tune})
    return str(world / "config.yaml")


def searched(file: str) -> tuning.Search:
    config, search = tuning.open_search(file)
    tuning.run(config, search)
    return search


def test_the_best_trial_has_the_best_validation_and_its_config_gives_it_again(world, tmp_path):
    search = searched(config_file(world, trials=3))
    values = [trial.value for trial in search.trials]
    assert len(values) == len(set(values)) == 3
    assert search.best.value == min(values)
    best = tmp_path / "best.yaml"
    best.write_text(tuning.best_config(search))
    config = load_config(best)
    assert config.finetune.learning_rate == search.best.params["finetune.learning_rate"]
    assert config.finetune.max_steps == search.best.params["finetune.max_steps"]
    assert config.checkpoint == str(world / "checkpoint")
    found = tuning.finetune(config)
    assert found["validation"]["log_loss"] == pytest.approx(search.best.value, abs=1e-9)


def test_a_second_call_adds_what_is_missing_and_trains_nothing_again(world, monkeypatch):
    first = [trial.params for trial in searched(config_file(world)).trials]
    trained = []
    real = tuning.finetune
    monkeypatch.setattr(tuning, "finetune", lambda config: trained.append(config) or real(config))
    assert [trial.params for trial in searched(config_file(world)).trials] == first
    assert trained == []
    assert [trial.params for trial in searched(config_file(world, trials=3)).trials][:2] == first
    assert len(trained) == 1


def test_a_search_that_goes_on_asks_nothing_twice(world, monkeypatch):
    monkeypatch.setattr(tuning, "_judge", lambda config, search, trial: trial.suggest_float("x", 0.0, 1.0))
    found = [[trial.params["x"] for trial in searched(config_file(world, trials=n)).trials] for n in (2, 4, 6)]
    assert found[2][:4] == found[1] and found[1][:2] == found[0]
    assert len(set(found[2])) == 6


def test_a_trial_that_was_killed_is_run_again(world):
    _, search = tuning.open_search(config_file(world))
    search.study.ask()  # as a search leaves it that ends here
    search = searched(config_file(world))
    assert sum(trial.value is not None for trial in search.trials) == 2


def test_other_settings_are_another_search(world):
    searched(config_file(world))
    _, other = tuning.open_search(config_file(world), ["finetune.seed=2"])
    assert other.trials == []


def test_no_weights_are_left_behind(world):
    search = searched(config_file(world))
    assert [file.name for file in search.folder.iterdir()] == ["trials.db"]


def test_what_a_killed_search_left_is_cleared_and_a_slash_changes_no_place(world):
    file = config_file(world)
    _, search = tuning.open_search(file, [f"checkpoint={world}/checkpoint/"])
    assert search.folder == world / "checkpoint.tune"
    (search.folder / "trial-7.training").mkdir()
    searched(file)
    assert [path.name for path in search.folder.iterdir()] == ["trials.db"]


def test_two_searches_of_one_checkpoint_do_not_meet(world):
    config, search = tuning.open_search(config_file(world))
    with folders.held(search.folder), pytest.raises(ConflictError, match="another process is making it"):
        tuning.run(config, search)
    assert search.trials == []


def test_a_trial_that_fails_is_told_and_the_others_go_on(world, monkeypatch):
    real = tuning.finetune
    calls = []

    def sometimes(config):
        calls.append(config)
        if len(calls) == 1:
            raise CheckpointError("model: damaged")
        return real(config)

    monkeypatch.setattr(tuning, "finetune", sometimes)
    search = searched(config_file(world))
    assert [trial.value is None for trial in search.trials] == [True, False]
    assert search.trials[0].user_attrs["failed"] == "model: damaged"


def test_when_every_trial_fails_the_error_is_the_last_ones(world, monkeypatch):
    monkeypatch.setattr(tuning, "finetune", lambda config: (_ for _ in ()).throw(CheckpointError("model: damaged")))
    with pytest.raises(CheckpointError, match="model: damaged"):
        searched(config_file(world))


@pytest.mark.parametrize(
    ("space", "text"),
    [
        ({}, r"tune.space: got nothing, expected at least one key"),
        ({"score.n": [1, 2]}, r"tune.space: got score.n, expected a key of prompts, model, finetune"),
        ({"finetune.learning_rat": [1e-3]}, r"did you mean finetune.learning_rate\?"),
        ({"finetune.learning_rate": [1e-3, -1.0]}, r"finetune.learning_rate: got -1.0"),
        ({"finetune.dropout": {"low": 0.5, "high": 0.1}}, r"got low 0.5 and high 0.1, expected low < high"),
        ({"finetune.epochs": []}, r"tune.space"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused_before_anything_is_trained(world, space, text):
    with pytest.raises(ConfigError, match=text):
        tuning.open_search(config_file(world, space))
    assert not (world / "checkpoint.tune").exists()


def test_a_metric_that_a_join_cannot_tell_is_refused_before_anything_is_trained(world):
    file = config_file(world, {"model.join": ["attention", "full"]}, metric="ndcg")
    with pytest.raises(ConfigError, match=r"tune.metric: got ndcg, which join: full is too slow to measure"):
        tuning.open_search(file)


def test_of_a_trial_that_failed_its_message_is_kept_and_nothing_else(world, monkeypatch):
    held = []

    class Large:
        pass

    def fails(config):
        model = Large()
        held.append(weakref.ref(model))
        try:
            raise MemoryError("of the machine")
        except MemoryError as cause:
            raise EnvironmentFault("finetune: out of memory") from cause

    monkeypatch.setattr(tuning, "finetune", fails)
    with pytest.raises(EnvironmentFault, match="out of memory"):
        searched(config_file(world))
    assert [model() for model in held] == [None, None]
