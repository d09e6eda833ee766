"""One local Spark session with Delta for the whole test run, and tables in a folder and database of each test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from pyspark.sql import SparkSession

from flmrec_spark.config import TablesConfig
from flmrec_spark.job import session
from flmrec_spark.tables.delta import Tables

_DATABASES = itertools.count(1)

if not Path("/dev/nvidia0").exists():  # Triton asks when it is imported first, and its interpreter needs no GPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A machine under load is slow, not wrong.
hypothesis.settings.register_profile("flmrec", deadline=None)
hypothesis.settings.load_profile("flmrec")


_LONGEST = ("test_families.py", "test_diversity.py")  # modules of minutes
_WHOLE_JOBS = {"tests", "jobs", "evaluate", "benchmarks"}  # folders of tests that run whole jobs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long modules first, so that of two processes none ends minutes before the other."""
    items.sort(key=lambda item: (item.path.name not in _LONGEST, item.path.parent.name not in _WHOLE_JOBS))


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The session that a job makes for itself, with an embedded catalog in a temporary folder.

    Worlds of some dozen rows need no more partitions than these, and every one costs time; so does Java that Spark
    writes and compiles for each query, and plans that are made anew after each stage: here it interprets the plans as
    they are. Tests that start Spark in a process of its own, such as test_score_processes, leave it as it comes.
    """
    settings = {
        "spark.sql.shuffle.partitions": "2",
        "spark.databricks.delta.snapshotPartitions": "1",
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.sql.adaptive.enabled": "false",
    }
    few = " ".join(f"--conf {key}={value}" for key, value in settings.items())
    os.environ.setdefault("PYSPARK_SUBMIT_ARGS", f"{few} pyspark-shell")
    catalog = tmp_path_factory.mktemp("catalog") / "metastore"
    started = session(TablesConfig(root=None, metastore=str(catalog)), app_name="flmrec tests")
    yield started
    started.stop()


@pytest.fixture
def tables_config(tmp_path: Path) -> TablesConfig:
    """A root of the test's own and a database name that no other test uses."""
    return TablesConfig(root=str(tmp_path / "tables"), database=f"t{next(_DATABASES)}", metastore=None)


@pytest.fixture
def tables(spark: SparkSession, tables_config: TablesConfig) -> Tables:
    return Tables(spark, tables_config)
