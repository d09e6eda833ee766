"""jobs/score.py by every strategy on a small world: the same tables, the same promises, without a checkpoint."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from flmrec_spark.config import load_config
from flmrec_spark.tables.delta import Tables
from jobs import score
from tests.prepared import prepared_rows, write_prepared
from tests.recommended import recommended
from tests.scored import write_checkpoint
from tests.tiny import save_tiny
from tests.world import USERS, write_config

COLD = "new o'user"
# Kinds besides Spark's and counts: a fit on attributes, and embeddings; tests/stages/baselines hold all of them.
OTHERS = ["logistic_regression", "content_lm"]
PARTS = ["popularity", "user_item_mean"]

Row = dict[str, Any]


@pytest.fixture(scope="module")
def world(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared tables with a user and an item that nobody met; no checkpoint."""
    folder = tmp_path_factory.mktemp("strategies")
    content = prepared_rows()
    content["users"].append({"user_id": COLD, "group": "x"})
    content["items"].append({"item_id": "unmet", "title": "ab", "genre": "drama"})
    write_prepared(folder / "tables", content)
    save_tiny(folder / "model")
    own = {"root": str(folder / "tables"), "database": "strategies", "metastore": None}
    write_config(
        folder, tables=own, score={"n": 3, "partitions": 2, "min_coverage": 1.0}, evaluate={"baselines": PARTS}
    )
    return folder


def run(folder: Path, *argv: str) -> int:
    return score.main(["--config", str(folder / "config.yaml"), *argv])


def rows(folder: Path, name: str) -> list[Row]:
    found = DeltaTable(str(folder / "tables" / name)).to_pyarrow_table().to_pylist()
    return sorted(found, key=lambda row: json.dumps(row, sort_keys=True, default=str))


def versions(folder: Path) -> dict[str, int]:
    return {table.name: DeltaTable(str(table)).version() for table in (folder / "tables").iterdir()}


def expect_whole(folder: Path, lists: list[Row]) -> dict[str, list[str]]:
    """Checks the promises of the lists of all users; the items of each."""
    by_user: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(lists, key=lambda row: row["rank"]):
        by_user[row["user_id"]].append(row)
    assert set(by_user) == {*USERS, COLD}
    seen = {(row["user_id"], row["item_id"]) for row in rows(folder, "interactions")}
    for user, own in by_user.items():
        assert [row["rank"] for row in own] == [1, 2, 3]
        assert own == sorted(own, key=lambda row: (-row["score"], row["item_id"]))
        assert all(0 <= row["score"] <= 1 and row["has_history"] is (user != COLD) for row in own)
        assert not {(user, row["item_id"]) for row in own} & seen
    return {user: [row["item_id"] for row in own] for user, own in by_user.items()}


def test_a_baseline_publishes_whole_lists_and_the_commit_names_it(spark: SparkSession, world: Path) -> None:
    assert run(world, "score.strategy=als") == 0
    expect_whole(world, rows(world, "recommendations"))
    commit = Tables(spark, load_config(world / "config.yaml").tables).commits("recommendations")[0]
    assert commit["strategy"] == "als"
    assert "checkpoint" not in commit


@pytest.mark.parametrize("strategy", OTHERS)
def test_other_kinds_of_baselines_make_whole_lists(spark: SparkSession, world: Path, strategy: str) -> None:
    expect_whole(world, recommended(spark, load_config(world / "config.yaml", [f"score.strategy={strategy}"])))


def test_popularity_lists_what_most_have_liked_and_the_same_run_again_does_nothing(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    likes: dict[str, int] = defaultdict(int)
    for row in rows(world, "interactions"):
        likes[row["item_id"]] += row["is_liked"]
    assert run(world, "score.strategy=popularity", "score.history_splits=[train, valid, test]") == 0
    expected = sorted((row["item_id"] for row in rows(world, "items")), key=lambda item: (-likes[item], item))[:3]
    assert expect_whole(world, rows(world, "recommendations"))[COLD] == expected
    before = versions(world)
    monkeypatch.setattr("flmrec_spark.strategies.fit", lambda *_: pytest.fail("fitted again"))
    assert run(world, "score.strategy=popularity") == 0
    assert versions(world) == before


def test_filters_and_candidates_bound_a_baseline_too(spark: SparkSession, world: Path) -> None:
    pairs = [(user, item) for user in (USERS[0], COLD) for item in ("i00", "i01", "i03", "unmet", "gone")]
    spark.createDataFrame(pairs, "user_id string, item_id string").write.parquet(str(world / "pairs"))
    asked = f"score.candidates={{path: {world / 'pairs'}, format: parquet}}"
    loose = ("score.min_coverage=0.1", "score.exclude_seen=false")
    assert run(world, "score.strategy=ease", asked, "score.item_filter=genre = 'drama'", *loose) == 0
    genres = {row["item_id"]: row["genre"] for row in rows(world, "items")}
    drama = {item for item in ("i00", "i01", "i03", "unmet") if genres[item] == "drama"}
    found = rows(world, "recommendations")
    assert {row["user_id"] for row in found} == {USERS[0], COLD}
    assert {row["item_id"] for row in found} == drama
    refused = {row["reason"] for row in rows(world, "rejects") if row["source"] == "top_n"}
    assert refused == {"no item left to list"}


def test_a_hybrid_stacks_flm_and_the_baselines(spark: SparkSession, world: Path) -> None:
    write_checkpoint(world / "checkpoint")
    assert run(world, "score.strategy=hybrid") == 0
    expect_whole(world, rows(world, "recommendations"))
    commit = Tables(spark, load_config(world / "config.yaml").tables).commits("recommendations")[0]
    assert (commit["strategy"], commit["precision"]) == ("hybrid", "fp32")
    assert commit["checkpoint"]
    shutil.rmtree(world / "checkpoint")


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        (("score.strategy=hybrid",), 4, "CheckpointError"),
        (("score.strategy=magic",), 2, "score.strategy: got 'magic', expected 'flm', 'hybrid', 'popularity'"),
        (("score.strategy=user_mean",), 2, "score.strategy: got 'user_mean'"),
        (("score.strategy=content_lm", "model.path=nowhere"), 4, "nowhere: got no folder"),
        (("score.strategy=als", "score.item_filter=stock > 1"), 2, "ConfigError: score.item_filter"),
        (("score.strategy=als", "score.item_filter=genre = 'none'"), 3, "none may be listed"),
    ],
)
def test_what_stands_in_the_way_is_told(
    world: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], code: int, told: str
) -> None:
    assert run(world, *argv) == code
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_ease_refuses_too_many_items(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flmrec_spark.stages.baselines.neighbours.EASE_MAX_ITEMS", 9)
    assert run(world, "score.strategy=ease", "score.n=2") == 3
    assert "InputError: ease: got 18 items, expected at most 9" in capsys.readouterr().err.splitlines()[-1]


def test_a_baseline_needs_no_torch() -> None:
    code = "import sys, jobs.score, flmrec_spark.strategies; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
