"""`score.candidates`: what they name that the tables do not have, and pairs without an id."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.sql import SparkSession

from flmrec_spark import scoring
from tests.score_world import run


def test_unknown_users_and_items_are_counted_and_told_of(spark: SparkSession, caplog: pytest.LogCaptureFixture) -> None:
    known = {
        "users": spark.createDataFrame([("ann",), ("007",)], "user_id string"),
        "items": spark.createDataFrame([("a", "A"), ("b", "B")], "item_id string, title string"),
    }
    job: Any = SimpleNamespace(read=known.get, counts={})
    pairs = [("ann", "a"), ("007", "b"), ("7", "a"), ("7", "c"), ("ann", "c")]
    scoring.tell_of_unknown(job, spark.createDataFrame(pairs, "user_id string, item_id string"))
    assert job.counts == {"candidates_unknown_users": 1, "candidates_unknown_items": 1}
    assert "score: 1 users of score.candidates are not in the table users: their pairs are left out" in caplog.text
    caplog.clear()
    scoring.tell_of_unknown(job, spark.createDataFrame(pairs[:2], "user_id string, item_id string"))
    assert job.counts == {"candidates_unknown_users": 0, "candidates_unknown_items": 0}
    assert not caplog.messages


def test_a_pair_with_a_blank_id_is_refused(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (world / "pairs.csv").write_text("user_id,item_id\n ,x\n", encoding="utf-8")
    assert run(world, f"score.candidates={{path: {world / 'pairs.csv'}, format: csv}}") == 3
    assert "score.candidates: got 1 malformed rows or rows without an id" in capsys.readouterr().err
