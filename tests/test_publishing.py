"""Rejects of a run: written when there are some, replaced when the run is tried again, no commit for none."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession

from flmrec_spark import publishing
from flmrec_spark.job import Job
from flmrec_spark.stages import scores
from flmrec_spark.tables.delta import Tables
from tests.prepared import tiny_config

LISTED = ("ann", 1, "a", 0.5, 0.5, True, 0, None)
REFUSED = ("bob", 0, None, None, None, True, 0, "no room")


@pytest.fixture
def job(spark: SparkSession, tables: Tables, tmp_path: Path) -> Job:
    return Job("score", tiny_config(tmp_path), spark, tables, "tonight", datetime.now(UTC))


def write(job: Job, *rows: tuple[object, ...]) -> None:
    staged: DataFrame = job.spark.createDataFrame(list(rows), scores.OUTPUT)
    no_items = job.spark.createDataFrame([], "item_id string, reason string")
    job.counts |= {"users_rejected": sum(row[1] == 0 for row in rows), "items_rejected": 0}
    publishing.write_rejects(job, staged, no_items)


def reasons(job: Job) -> list[tuple[str, str]]:
    return sorted((row["run_id"], row["reason"]) for row in job.tables.read("rejects").collect())


def test_a_run_that_refuses_nothing_commits_nothing(job: Job) -> None:
    write(job, LISTED)
    assert not job.tables.exists("rejects")
    job.run_id = "yesterday"
    write(job, LISTED, REFUSED)
    version = job.tables.version("rejects")
    job.run_id = "tonight"
    write(job, LISTED)
    assert job.tables.version("rejects") == version
    assert reasons(job) == [("yesterday", "no room")]


def test_what_an_earlier_attempt_refused_goes_when_this_one_refuses_nothing(job: Job) -> None:
    job.run_id = "yesterday"
    write(job, REFUSED)
    job.run_id = "tonight"
    write(job, LISTED, REFUSED)
    assert reasons(job) == [("tonight", "no room"), ("yesterday", "no room")]
    write(job, LISTED)
    assert reasons(job) == [("yesterday", "no room")]
