"""The whole pipeline on a tiny world, every job twice: the second time nothing changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from flmrec_spark import columns as c
from flmrec_spark.config import load_config
from flmrec_spark.tables.delta import Tables
from jobs import evaluate, prepare, score
from scripts import finetune
from tests.world import ITEMS, NEW_USER, USERS, write_world

JOBS = {"prepare": prepare.main, "finetune": finetune.main, "score": score.main, "evaluate": evaluate.main}
TABLES = ("interactions", "items", "users", "examples", "top_n", "recommendations", "evaluation", "rejects", "runs")


@pytest.fixture(scope="module")
def world(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    config = write_world(
        folder, tables={"database": "pipeline"}, evaluate={"baselines": ["item_mean", "ease"], "hybrid": True}
    )
    for name, main in JOBS.items():
        assert main(["--config", str(config)]) == 0, name
    return folder


@pytest.fixture
def published(spark: SparkSession, world: Path) -> Tables:
    return Tables(spark, load_config(world / "config.yaml").tables)


def rows(folder: Path, name: str) -> list[dict[str, object]]:
    """The table as a reader without Spark sees it, in a fixed order."""
    found = DeltaTable(str(folder / "tables" / name)).to_pyarrow_table().to_pylist()
    return sorted(found, key=lambda row: json.dumps(row, sort_keys=True, default=str))


def test_every_user_gets_a_full_list_of_unseen_items_in_order(world: Path):
    lists: dict[str, list[dict[str, object]]] = {}
    for row in rows(world, "recommendations"):
        lists.setdefault(row[c.USER_ID], []).append(row)
    seen = {(row[c.USER_ID], row[c.ITEM_ID]) for row in rows(world, "interactions")}
    assert set(lists) == {*USERS, NEW_USER}
    for user, own in lists.items():
        own.sort(key=lambda row: row[c.RANK])
        assert [row[c.RANK] for row in own] == [1, 2, 3]
        assert [(-row[c.SCORE], row[c.ITEM_ID]) for row in own] == sorted(
            (-row[c.SCORE], row[c.ITEM_ID]) for row in own
        )
        assert all(0 <= row[c.SCORE] <= 1 and row[c.ITEM_ID] in ITEMS for row in own)
        assert not {(user, row[c.ITEM_ID]) for row in own} & seen
        assert all(row[c.HAS_HISTORY] is (user != NEW_USER) for row in own)


def test_every_job_left_its_run_and_its_inputs(world: Path):
    runs = {row["job"]: row for row in rows(world, "runs")}
    assert set(runs) == {"prepare", "score", "evaluate"}
    assert all(row["verdict"] == "done" and "tables:" in row["config"] for row in runs.values())
    assert dict(runs["score"]["counts"])["users_listed"] == len(USERS) + 1
    assert set(dict(runs["score"]["inputs"])) == {"interactions", "items", "users", "checkpoint"}


def test_a_hybrid_was_measured_beside_its_parts(world: Path):
    models = {row["model"] for row in rows(world, "evaluation")}
    assert {"flm", "ease", "hybrid", "flm - hybrid", "hybrid - ease"} <= models


def test_the_commit_names_what_made_it(world: Path, published: Tables):
    commit = published.commits("recommendations")[0]
    manifest = json.loads((world / "checkpoint" / "manifest.json").read_text())
    assert commit["checkpoint"] == manifest["digest"]
    assert commit["run_id"] == rows(world, "recommendations")[0][c.RUN_ID]
    assert {"interactions", "items", "users", "config", "fingerprint"} <= set(commit)


def test_the_view_shows_titles(spark: SparkSession, published: Tables):
    frame = spark.sql(
        "SELECT title, rank FROM pipeline.recommendations_with_titles WHERE user_id = '007' ORDER BY rank"
    )
    assert [row["rank"] for row in frame.collect()] == [1, 2, 3]
    assert all(row["title"].startswith("title") for row in frame.collect())


def test_the_second_call_changes_nothing(world: Path, published: Tables, capsys: pytest.CaptureFixture[str]):
    before = {name: rows(world, name) for name in TABLES if name not in ("runs",)}
    versions = {name: published.version(name) for name in ("interactions", "items", "users", "examples", "top_n")}
    published_version = published.version("recommendations")
    digest = (world / "checkpoint" / "manifest.json").read_bytes()
    for name, main in JOBS.items():
        assert main(["--config", str(world / "config.yaml")]) == 0, name
    assert {name: rows(world, name) for name in before} == before
    assert {name: published.version(name) for name in versions} == versions
    assert published.version("recommendations") == published_version
    assert (world / "checkpoint" / "manifest.json").read_bytes() == digest
    assert '"status": "already done"' in capsys.readouterr().out
