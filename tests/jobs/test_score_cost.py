"""What jobs/score.py tells of its cost: where the time went, how often a model was loaded, and what --dry-run says."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from flmrec_spark import dry_run
from tests.score_world import COLD, run, runs, versions, world_rows
from tests.world import ITEMS

PARTS = {"start", "ship", "items", "score", "write"}

Capture = pytest.CaptureFixture[str]


def line_of_first(published: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((published / "line.json").read_text())
    return found


def last_line(capsys: Capture) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_the_record_says_where_the_time_went_and_what_was_computed(published: Path) -> None:
    told = line_of_first(published)
    seconds = told["seconds"]
    assert set(seconds) == {*PARTS, "wall"}
    assert all(seconds[part] > 0 for part in PARTS)
    assert sum(seconds[part] for part in PARTS) == pytest.approx(seconds["wall"], rel=0.05, abs=0.3)
    recorded = runs(published)["first"]
    counts = dict(recorded["counts"])
    assert {name: told[name] for name in counts} == counts
    users = len(world_rows()["users"]) - 1  # one does not fit a prompt
    assert counts["pairs"] == users * len(ITEMS)
    assert 0 < counts["scorer_ms"] <= 1000 * seconds["score"] * (os.cpu_count() or 1)
    assert counts["model_loads"] <= counts["workers"] <= 2 * (os.cpu_count() or 1)  # some have it from an earlier run
    assert 200 < counts["peak_rss_mb"] < 20_000
    assert dict(recorded["seconds"]).keys() == PARTS
    assert dict(recorded["versions"])["precision"] == "fp32"


def test_candidates_count_as_the_pairs_they_are_and_auto_is_resolved_once_and_told(
    spark: SparkSession, world: Path, capsys: Capture
) -> None:
    pairs = [(COLD, item) for item in ITEMS[:5]] + [("u00", "no such item")]
    spark.createDataFrame(pairs, "user_id string, item_id string").write.parquet(str(world / "pairs"))
    asked = f"score.candidates={{path: {world / 'pairs'}, format: parquet}}"
    assert run(world, asked, "score.min_coverage=0.05", "--run-id", "auto", "score.precision=auto") == 0
    told = last_line(capsys)
    assert told["pairs"] == 5
    recorded = dict(runs(world)["auto"]["versions"])
    assert told["precision"] == recorded["precision"] in ("fp32", "bf16", "int8")
    assert "fp32 " in recorded["precision_because"]
    assert "GFLOP/s" in recorded["precision_because"]


def test_a_dry_run_writes_nothing_and_counts_what_a_run_counts(world: Path, published: Path, capsys: Capture) -> None:
    before = versions(world)
    assert run(world, "--dry-run") == 0
    printed = capsys.readouterr().out
    dry = json.loads(printed.splitlines()[-1])
    assert "nothing was written" in printed
    assert versions(world) == before
    assert not any((world / "tables" / name).exists() for name in ("top_n", "recommendations", "rejects", "runs"))
    real = line_of_first(published)
    assert (dry["status"], dry["run_id"]) == ("dry run", "")
    assert (dry["users"], dry["items"], dry["items_rejected"]) == (real["users"], real["items"], real["items_rejected"])
    assert dry["pairs"] == dry["users"] * dry["items"]  # before it is known that one user does not fit
    assert dry["tokens"] == pytest.approx(real["tokens"], rel=0.3)
    assert dry["rows"] == pytest.approx(real["rows"], rel=0.1)
    assert set(dry["seconds"]) == {*PARTS, "wall"}
    assert dry["seconds"]["wall"] == pytest.approx(sum(dry["seconds"][part] for part in PARTS))
    assert dry["gflop"] >= 0
    assert dry["peak_rss_mb"] > 200


def test_a_dry_run_that_fails_leaves_no_record(world: Path, capsys: Capture) -> None:
    shutil.rmtree(world / "checkpoint")
    assert run(world, "--dry-run", "--run-id", "x") == 4
    assert "CheckpointError" in capsys.readouterr().err
    assert not (world / "tables/runs").exists()


def test_the_expected_time_is_the_work_over_the_rate_that_was_tried(
    world: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for rate in (1e5, 1e6):
        tried = dry_run.Tried(flops_per_s=rate, rows_per_user=3.0, bytes_per_row=20.0, stage_s=0.1, user_s=0.2)
        monkeypatch.setattr(dry_run, "_try", lambda *given, tried=tried, **named: tried)
        assert run(world, "--dry-run") == 0
        found.append(last_line(capsys)["seconds"]["score"])
    slow, fast = found
    work = slow - fast  # 9/10 of the slow one's time to score; the plan takes about the same twice
    users = len(world_rows()["users"])
    least = users * (2 * 3 * (4 * 24**2 + 2 * 24 * 48) * 10) / 1e5  # ten tokens a user through three layers, no item
    assert work > 0.9 * least / (2 * (os.cpu_count() or 1))
