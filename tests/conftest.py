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
from tests.light import LIGHT, LONG, flags

_DATABASES = itertools.count(1)

if not Path("/dev/nvidia0").exists():  # Triton asks when it is imported first, and its interpreter needs no GPU
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A machine under load is slow, not wrong.
hypothesis.settings.register_profile("flmrec", deadline=None)
hypothesis.settings.load_profile("flmrec")


_LONGEST = ("test_families.py", "test_diversity.py")  # modules of minutes
_WHOLE_JOBS = {"tests", "jobs", "evaluate", "benchmarks"}  # folders of tests that run whole jobs
_STAGES = {"stages", "baselines", "tables"}  # those that run parts of one in Spark; what is left is short and many


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long modules first and short ones last, so that of two processes none ends minutes before the other."""

    def place(item: pytest.Item) -> tuple[bool, bool, bool]:
        folder = item.path.parent.name
        return item.path.name not in _LONGEST, folder not in _WHOLE_JOBS, folder not in _STAGES

    items.sort(key=place)


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The session that a job makes for itself, but light, with an embedded catalog in a temporary folder."""
    few = " ".join(flags(LIGHT | LONG))
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
