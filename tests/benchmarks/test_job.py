"""benchmarks/job.py on a tiny world: it runs the job dry and for real and says what both said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import job, job_world


def test_the_shape_of_the_made_world() -> None:
    history = job_world.made_history(np.random.default_rng(1), 6040, 3706)
    lengths = np.array([len(row) for row in history])
    assert all(len(set(row.tolist())) == len(row) for row in history[:200])
    assert lengths.min() >= 20
    assert 140 < lengths.mean() < 190  # MovieLens-1M: 166
    assert 80 < np.median(lengths) < 120  # 96
    counts = np.bincount(np.concatenate(history), minlength=3706)
    assert counts[:100].mean() > 4 * counts.mean()


def test_a_tiny_run_says_where_its_time_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    size = ["--users", "60", "--items", "80", "--n", "10", "--cores", "1", "--precision", "fp32"]
    assert job.main(["--tiny", "--only", "base", *size, "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert (row["name"], row["users"], row["items"], row["executors"], row["precision"]) == ("base", 60, 80, 1, "fp32")
    assert row["pairs"] == 60 * 80
    assert row["precision_because"] == "score.precision"
    parts = sum(row[f"{part}_s"] for part in job.PARTS)
    assert 0.7 * row["wall_s"] < parts < row["wall_s"]  # Spark's own end is not in its record
    assert 0.5 < row["peak_pss_gb"] < row["peak_rss_gb"] < 10
    assert 0 < row["scorer_s"] < row["wall_s"]
    assert 0 < row["busy_s"] < row["score_s"]
    assert row["spark_share"] == pytest.approx(1 - row["scorer_s"] / row["wall_s"])
    assert row["dry_run_error"] == pytest.approx(row["dry_run_s"] / row["wall_s"] - 1)
    assert "by time and memory" in capsys.readouterr().out
