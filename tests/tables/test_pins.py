"""Sources that grow while they are read: a Delta table is read at the version that its name tells."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from flmrec_spark.config import Source
from flmrec_spark.tables.pins import pinned
from flmrec_spark.tables.sources import read_source


def append(spark: SparkSession, place: Path, user: str) -> None:
    frame = spark.createDataFrame([(user, "i")], "user_id string, item_id string")
    frame.write.format("delta").mode("append").save(str(place))


def users(spark: SparkSession, source: Source) -> set[str]:
    found = read_source(spark, source, name="prepare.interactions", required=("user_id", "item_id"))
    return {row.user_id for row in found.collect()}


def test_a_delta_table_is_read_at_one_version_whatever_is_appended(spark: SparkSession, tmp_path: Path) -> None:
    append(spark, tmp_path / "log", "a")
    append(spark, tmp_path / "log", "b")
    spark.sql(f"CREATE TABLE default.pinned_log USING delta LOCATION '{tmp_path / 'log'}'")
    try:
        by_path, told = pinned(spark, Source(path=str(tmp_path / "log"), format="delta"))
        by_name, told_of_name = pinned(spark, Source(table="default.pinned_log"))
        append(spark, tmp_path / "log", "c")
        assert (told, told_of_name) == (f"{tmp_path / 'log'}@1", "default.pinned_log@1")
        assert users(spark, by_path) == users(spark, by_name) == {"a", "b"}
        assert users(spark, Source(table="default.pinned_log")) == {"a", "b", "c"}
    finally:
        spark.sql("DROP TABLE default.pinned_log")


@pytest.mark.parametrize("options", [{"versionAsOf": 0}, {"VERSIONASOF": 0}, {"timestampAsOf": "2020-01-01"}])
def test_a_version_of_ones_own_stays(spark: SparkSession, tmp_path: Path, options: dict[str, str | int]) -> None:
    append(spark, tmp_path, "a")
    source = Source(path=str(tmp_path), format="delta", options=options)
    assert pinned(spark, source) == (source, source.place)


def test_what_is_no_delta_table_is_read_as_it_is(spark: SparkSession, tmp_path: Path) -> None:
    for source in (
        Source(path=str(tmp_path), format="csv"),
        Source(path=str(tmp_path / "none"), format="delta"),
        Source(table="default.no_such_table"),
    ):
        assert pinned(spark, source) == (source, source.place)
