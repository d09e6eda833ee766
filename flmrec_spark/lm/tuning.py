"""A search over settings: each trial is a whole fine-tuning, judged by its best validation; test rows are never read.

Trials are kept in a SQLite file beside the checkpoint, so a search that was killed goes on with the trials it has.
Sampling: tree-structured Parzen estimator (Bergstra et al. 2011), Optuna's default.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from flmrec_spark.config import Config, Range, load_config
from flmrec_spark.errors import ConfigError, FlmrecError, InputError
from flmrec_spark.lm import folders, machine
from flmrec_spark.lm.finetuning import finetune, fingerprint
from flmrec_spark.lm.manifest import text_digest
from flmrec_spark.lm.prepared import expect_histories, read_tables
from flmrec_spark.metrics import LOWER_IS_BETTER

log = logging.getLogger("flmrec")

_SEARCHED = ("prompts", "model", "finetune")  # what does not change the prepared tables
_FAILED = "failed"  # the attribute of a trial that says why


@dataclass(frozen=True)
class Search:
    """A search and what it found; `best` is None while no trial has ended well."""

    study: optuna.Study
    config_file: str
    overrides: tuple[str, ...]
    folder: Path

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))

    @property
    def best(self) -> FrozenTrial | None:
        done = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        return self.study.best_trial if done else None


def open_search(config_file: str, overrides: Sequence[str] = ()) -> tuple[Config, Search]:
    """The search of a config, with the trials that it already has.

    A search of other settings, data or space starts anew under another name in the same file.

    Raises:
      ConfigError: tune.space is empty, names a key outside of prompts, model and finetune, one that the config does
        not know, or a value that the key, or the prepared tables, refuse.
      CheckpointError, InputError: as `read_tables`.
    """
    config = load_config(config_file, overrides)
    if not config.tune.space:
        raise ConfigError("tune.space: got nothing, expected at least one key to search over")
    tried = [config]
    for key, values in config.tune.space.items():
        if key.partition(".")[0] not in _SEARCHED:
            raise ConfigError(f"tune.space: got {key}, expected a key of {', '.join(_SEARCHED)}")
        for value in [values.low, values.high] if isinstance(values, Range) else values:
            tried.append(load_config(config_file, [*overrides, _override(key, value)]))
    if config.tune.metric == "ndcg" and any(one.model.join == "full" for one in tried):
        raise ConfigError("tune.metric: got ndcg, which join: full is too slow to measure")
    folder = folders.beside(Path(config.checkpoint), ".tune")
    folder.mkdir(parents=True, exist_ok=True)
    prepared = read_tables(config.tables.root)
    expect_histories(prepared, max(one.prompts.history_length for one in tried))
    name = text_digest(f"{fingerprint(config, prepared)}|{config.tune.model_dump_json(include={'space', 'metric'})}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=name[:12],
        storage=f"sqlite:///{folder / 'trials.db'}",
        direction="minimize" if config.tune.metric in LOWER_IS_BETTER else "maximize",
        load_if_exists=True,
    )
    # A sampler draws from its beginning: one of the same seed would ask again what a search before this one has tried.
    study.sampler = optuna.samplers.TPESampler(
        seed=config.tune.seed + 1_000_003 * len(study.get_trials(deepcopy=False))
    )
    return config, Search(study, config_file, tuple(overrides), folder)


def run(config: Config, search: Search, *, told: Callable[[], None] = lambda: None) -> None:
    """Runs the trials that are missing, up to tune.trials, until tune.max_minutes are over.

    Args:
      told: called after each trial.

    Raises:
      ConflictError: another process runs a search of this checkpoint.
      FlmrecError: every trial failed; the error of the last one.
    """
    with folders.held(search.folder):
        _clear(search.folder)
        _run(config, search, told)


def _run(config: Config, search: Search, told: Callable[[], None]) -> None:
    for stale in search.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):  # of a search that was killed
        search.study.tell(stale.number, state=TrialState.FAIL)
    deadline = time.monotonic() + 60 * (config.tune.max_minutes or math.inf)
    fault: FlmrecError | None = None
    while _n_done(search) < config.tune.trials and time.monotonic() < deadline:
        trial = search.study.ask()
        log.info("tune: trial %d of %d", _n_done(search) + 1, config.tune.trials)
        try:
            value = _judge(config, search, trial)
        except FlmrecError as failure:
            fault = failure
            _forget_frames(failure)
            trial.set_user_attr(_FAILED, str(failure))
            search.study.tell(trial, state=TrialState.FAIL)
        else:
            search.study.tell(trial, value)
        told()
    if search.best is None and fault is not None:
        raise fault


def _forget_frames(fault: BaseException | None) -> None:
    """What the trial held, which is as large as a model, is not kept for its message."""
    while fault is not None:
        traceback.clear_frames(fault.__traceback__)
        fault = fault.__cause__ or fault.__context__


def _n_done(search: Search) -> int:
    """Trials that ended by themselves, well or not."""
    return sum(trial.state == TrialState.COMPLETE or _FAILED in trial.user_attrs for trial in search.trials)


def _judge(config: Config, search: Search, trial: optuna.Trial) -> float:
    overrides = [_override(key, _suggest(trial, key, values)) for key, values in config.tune.space.items()]
    folder = search.folder / f"trial-{trial.number}"
    chosen = load_config(search.config_file, [*search.overrides, *overrides, _override("checkpoint", str(folder))])
    started = time.perf_counter()
    try:
        told: Any = finetune(chosen)
    finally:
        _clear(search.folder)
    trial.set_user_attr("overrides", overrides)
    trial.set_user_attr("seconds", round(time.perf_counter() - started, 1))
    trial.set_user_attr("validation", told["validation"])
    found = told["validation"][config.tune.metric]
    value = math.nan if found is None else float(found)  # null: of a trial that was done before
    if math.isnan(value):
        raise InputError(f"tune.metric: {config.tune.metric} is not defined on the valid split")
    return value


def _clear(folder: Path) -> None:
    """Settings are kept, weights are not, also those of a search that was killed."""
    for left in folder.glob("trial-*"):
        left.unlink() if left.is_file() else shutil.rmtree(left, ignore_errors=True)


def _suggest(trial: optuna.Trial, key: str, values: Range | list[Any]) -> Any:
    if not isinstance(values, Range):
        return trial.suggest_categorical(key, values)
    if values.is_whole:
        return trial.suggest_int(key, int(values.low), int(values.high), log=values.log)
    return trial.suggest_float(key, values.low, values.high, log=values.log)


def _override(key: str, value: Any) -> str:
    return f"{key}={json.dumps(value)}"  # JSON is YAML


def best_config(search: Search) -> str:
    """The config of the best trial as YAML, with what the search cost as its first lines.

    Raises:
      InputError: no trial has ended well.
    """
    best = search.best
    if best is None or best.value is None:
        raise InputError(f"{search.folder}: got no finished trial, expected one")
    seconds = sum(trial.user_attrs.get("seconds", 0.0) for trial in search.trials)
    config = load_config(search.config_file, [*search.overrides, *best.user_attrs["overrides"]])
    found = ", ".join(
        f"{name} {value:.4f}" for name, value in best.user_attrs["validation"].items() if value is not None
    )
    return (
        f"# Trial {best.number} of {len(search.trials)}; validation: {found}\n"
        f"# The search took {seconds / 60:.1f} minutes on {machine.cpu_name()}\n{config.to_yaml()}"
    )
