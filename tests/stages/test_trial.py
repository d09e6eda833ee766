"""The users of a trial, and the one task that settles on a number format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec_spark import dry_run
from flmrec_spark.config import ScoreConfig
from flmrec_spark.errors import InputError
from flmrec_spark.ship import settled, ship
from flmrec_spark.stages import trial
from flmrec_spark.stages.scores import Shipped
from tests.scored import write_checkpoint
from tests.stages.test_scores import PROMPTS, ROWS

N_USERS = 50


@pytest.fixture(scope="module")
def prompts(spark: SparkSession) -> DataFrame:
    rows = [(f"u{at}", str(at), [("i00", True, 5.0)] * (at % 3), [], None) for at in range(N_USERS)]
    rows.append(("verbose", "x" * 100, [], [], None))
    return spark.createDataFrame(rows, PROMPTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("trial") / "checkpoint")


def shipped(spark: SparkSession, folder: Path, precision: str) -> tuple[Shipped, ScoreConfig]:
    score = ScoreConfig.model_validate({"precision": precision})
    items = spark.createDataFrame(ROWS, "item_id string, title string, stock int")
    users = spark.createDataFrame([], "user_id string, age string")
    return ship(spark, checkpoint=str(folder), items=items, users=users, score=score), score


def ids(frame: DataFrame) -> Sequence[str]:
    return [row.user_id for row in frame.collect()]


def test_a_sample_is_the_same_whatever_the_order_of_the_rows_and_a_larger_one_holds_it(prompts: DataFrame) -> None:
    first = ids(trial.sample(prompts, 8))
    assert len(set(first)) == 8
    assert ids(trial.sample(prompts.orderBy(F.rand(1)).repartition(5), 8)) == first
    assert set(first) < set(ids(trial.sample(prompts, 20)))
    assert len(ids(trial.sample(prompts, 1000))) == N_USERS + 1


def test_auto_becomes_a_format_with_its_reason(spark: SparkSession, folder: Path, prompts: DataFrame) -> None:
    asked, score = shipped(spark, folder, "auto")
    found, told = settled(asked, prompts, score)
    assert found.bundle.precision == told["precision"] in ("fp32", "bf16", "int8")
    assert told["precision_because"].startswith("fp32 ")
    assert found.bundle.digest == asked.bundle.digest


def test_a_format_that_is_told_is_not_tried(
    spark: SparkSession, folder: Path, prompts: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, score = shipped(spark, folder, "bf16")
    monkeypatch.delattr("flmrec_spark.ship.chosen_precision")
    assert settled(asked, prompts, score) == (asked, {"precision": "bf16", "precision_because": "score.precision"})


def test_the_trial_sees_the_users_that_fit_a_prompt(spark: SparkSession, folder: Path, prompts: DataFrame) -> None:
    asked, _ = shipped(spark, folder, "auto")
    verbose = prompts.where("user_id IN ('verbose', 'u1', 'u2')")
    (row,) = trial.chosen_precision(verbose, asked, n=3).collect()
    assert row.precision in ("fp32", "bf16", "int8")
    (row,) = trial.chosen_precision(prompts.where("user_id = 'verbose'"), asked, n=3).collect()
    assert row.precision == "fp32"
    assert "no users to compare lists of" in row.reason or "none is faster" in row.reason


def test_a_dry_run_counts_by_users_where_those_it_tried_had_no_item_to_score() -> None:
    work: Any = SimpleNamespace(flops=6e9, users=500)
    usual = dry_run.Tried(flops_per_s=1e9, rows_per_user=3.0, bytes_per_row=20.0, stage_s=0.1, user_s=0.2)
    none = dry_run.Tried(flops_per_s=0.0, rows_per_user=3.0, bytes_per_row=20.0, stage_s=0.1, user_s=0.2)
    assert (usual.seconds(work, 4), none.seconds(work, 4)) == (6 / 4, 500 * 0.2 / 4)


def test_a_dry_run_without_a_user_to_try_is_told(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    class Frame:
        def repartition(self, _: int) -> Frame:
            return self

        def where(self, _: object) -> Frame:
            return self

        def toArrow(self) -> None:
            return None

    monkeypatch.setattr(dry_run, "scores", lambda *_, **__: Frame())
    asked: Any = SimpleNamespace(usage=SimpleNamespace(sums=lambda: {"tasks": 1.0}))
    with pytest.raises(InputError, match=r"^users: got none, expected some of whom a few are scored for --dry-run"):
        dry_run._score(asked, Frame(), config=ScoreConfig(), slots=1)  # type: ignore[arg-type]
