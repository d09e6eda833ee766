"""jobs/score.py where something changed between two attempts of a run: lists, inputs, the checkpoint, other jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession
from safetensors.torch import load_file, save_file

from flmrec_spark.config import load_config
from flmrec_spark.lm import bundles, manifest
from flmrec_spark.tables import schemas
from flmrec_spark.tables.delta import Tables, run_predicate
from jobs import score
from tests.jobs.test_score import broken, expect_lists, no_scoring
from tests.score_world import rows, run, runs, version

Capture = pytest.CaptureFixture[str]


def table(world: Path, name: str) -> DeltaTable:
    return DeltaTable(str(world / "tables" / name))


def test_lists_that_somebody_put_back_or_deleted_are_published_again(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(done, "--run-id", "tuesday", "score.n=2") == 0
    tuesday = rows(done, "recommendations")
    monkeypatch.setattr(score, "scores", no_scoring)
    table(done, "recommendations").restore(0)
    assert run(done, "--run-id", "tuesday", "score.n=2") == 0
    assert rows(done, "recommendations") == tuesday
    table(done, "recommendations").delete()
    assert run(done, "--run-id", "first") == 0  # another run has followed it
    assert rows(done, "recommendations") == []
    assert run(done, "--run-id", "tuesday", "score.n=2") == 0
    assert rows(done, "recommendations") == tuesday


def test_a_run_that_another_has_overtaken_publishes_nothing(
    spark: SparkSession, done: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    real = score.publishing.judge
    sent = set(Path(str(spark.sparkContext._temp_dir)).iterdir())

    def overtaken(*given: Any) -> None:
        real(*given)
        monkeypatch.setattr(score.publishing, "judge", real)
        assert run(done, "--run-id", "quick", "score.n=1") == 0

    monkeypatch.setattr(score.publishing, "judge", overtaken)
    assert run(done, "--run-id", "slow", "score.n=2") == 7
    assert (
        "table recommendations: another run has published while this one scored; run again" in capsys.readouterr().err
    )
    assert {row["run_id"] for row in rows(done, "recommendations")} == {"quick"}
    assert set(Path(str(spark.sparkContext._temp_dir)).iterdir()) == sent  # what a run sends goes with it
    monkeypatch.setattr(score, "scores", no_scoring)
    assert run(done, "--run-id", "slow", "score.n=2") == 0  # now it is the later one
    assert {row["run_id"] for row in rows(done, "recommendations")} == {"slow"}


def test_a_commit_that_changes_no_row_of_an_input_makes_no_other_run(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    before = version(done, "interactions"), version(done, "recommendations")
    table(done, "interactions").alter.set_table_properties({"delta.logRetentionDuration": "interval 60 days"})
    monkeypatch.setattr(score, "scores", no_scoring)
    assert run(done, "--run-id", "first") == 0
    assert '"status": "already done"' in capsys.readouterr().out
    assert (version(done, "interactions"), version(done, "recommendations")) == (before[0] + 1, before[1])


def test_jobs_with_one_run_id_keep_their_own_rejects(spark: SparkSession, done: Path) -> None:
    tables = Tables(spark, load_config(done / "config.yaml").tables)
    told = [("first", "prepare", "items", 1, "duplicate item", None)]
    columns = "run_id string, job string, source string, row bigint, reason string, content string"
    frame = spark.createDataFrame(told, columns)
    tables.replace_rows(schemas.REJECTS, frame, run_predicate("first", job="prepare"), {})
    before = rows(done, "rejects")
    assert {(row["job"], row["source"]) for row in before} == {
        ("prepare", "items"),
        ("score", "items"),
        ("score", "top_n"),
    }
    table(done, "recommendations").delete()
    assert run(done, "--run-id", "first") == 0
    assert rows(done, "rejects") == before


def test_staged_lists_that_are_broken_are_scored_again(
    world: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(score, "scores", broken)
        assert run(world, "--run-id", "day") == 6
    assert run(world, "--run-id", "day") == 0
    assert "the lists that an earlier attempt staged are broken: scored again" in caplog.text
    expect_lists(world)
    assert runs(world)["day"]["verdict"] == "done"


def test_a_checkpoint_that_takes_the_place_of_another_meanwhile_is_not_scored_with(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    pack = bundles.pack

    def late(folder: Path, *told: Any, **more: Any) -> str:
        head = load_file(folder / "head.safetensors")
        save_file({**head, "rating.offset": head["rating.offset"] + 1.0}, folder / "head.safetensors")
        (folder / "manifest.json").unlink()
        manifest.write(folder)
        return pack(folder, *told, **more)

    monkeypatch.setattr(bundles, "pack", late)
    assert run(world) == 7
    assert "another one took its place meanwhile; run again" in capsys.readouterr().err
    assert not (world / "tables/top_n").exists()


def test_an_item_that_no_list_may_hold_is_not_refused_for_its_length(world: Path, capsys: Capture) -> None:
    assert run(world, "score.max_reject_share=0.0") == 6
    assert "items were refused" in capsys.readouterr().err
    assert run(world, "score.max_reject_share=0.0", "score.item_filter=item_id <> 'too long'") == 0


def test_what_is_published_needs_neither_its_record_nor_its_staged_lists(done: Path, capsys: Capture) -> None:
    before = rows(done, "recommendations"), version(done, "recommendations")
    table(done, "runs").delete()
    table(done, "top_n").delete()
    assert run(done, "--run-id", "first") == 0
    assert (rows(done, "recommendations"), version(done, "recommendations")) == before
    assert runs(done)["first"]["verdict"] == "done"
    capsys.readouterr()
    assert run(done, "--run-id", "first") == 0
    assert '"status": "already done"' in capsys.readouterr().out
