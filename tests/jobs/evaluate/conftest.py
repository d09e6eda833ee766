"""jobs/evaluate.py with the model replaced, and the tables that it reads."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.sql import SparkSession

from flmrec_spark.config import TablesConfig
from flmrec_spark.stages import models
from flmrec_spark.tables import schemas
from flmrec_spark.tables.delta import Tables
from tests.jobs.evaluate.world import EVALUATE, INTERACTIONS, JOB, SCORES, fake_both, fake_scores, fake_ship
from tests.world import MEANS


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], int]:
    """The job, with the model replaced."""
    spec = importlib.util.spec_from_file_location("evaluate_under_test", JOB)
    assert spec is not None and spec.loader is not None
    job: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, job)  # its dataclass looks itself up
    spec.loader.exec_module(job)
    monkeypatch.setattr(job, "ship", fake_ship)
    monkeypatch.setattr(models, "lists_of_both", fake_both)
    monkeypatch.setattr(job, "scores", fake_scores)
    return job.main  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def tables(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The world; nothing is in split valid."""
    root = str(tmp_path_factory.mktemp("evaluate") / "tables")
    tables = Tables(spark, TablesConfig(root=root, database="evaluate_job", metastore=None))
    columns = "user_id string, item_id string, moment int, is_liked boolean, split string"
    rows = spark.createDataFrame(INTERACTIONS, columns).selectExpr(
        "*", "null::timestamp timestamp", "null::double rating", "null::string event", "is_liked::int::double value"
    )
    tables.replace(schemas.INTERACTIONS, rows, {})
    items = spark.createDataFrame([(item, item) for item in "abcdex"], "item_id string, title string")
    tables.replace(schemas.items({}), items, {})
    users = spark.createDataFrame([(user,) for user in (*SCORES, "without rows")], "user_id string")
    tables.replace(schemas.users({}), users, {})
    return tables


@pytest.fixture
def config(tmp_path: Path, tables: Tables) -> Path:
    path = tmp_path / "config.yaml"
    values = {
        "tables": tables.config.model_dump(),
        "prepare": {"interactions": {"table": "none"}},
        "model": {"path": "none"},
        "checkpoint": "none",
        "score": {"partitions": 2},
        "evaluate": {**EVALUATE, "baselines": MEANS, "hybrid": False},
    }
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What the page reads of one: its training."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({"history": [{"step": 3, "auc": 0.5}, {"step": 6, "auc": 0.7}]}))
    return folder
