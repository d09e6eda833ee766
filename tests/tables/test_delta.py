"""Commits of Delta tables: whole or not at all, with constraints and history, by name and by path."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from flmrec_spark.config import TablesConfig
from flmrec_spark.errors import CheckpointError, ConflictError, EnvironmentFault, InputError
from flmrec_spark.tables import hadoop, schemas
from flmrec_spark.tables.delta import Tables, content_digest, run_predicate
from flmrec_spark.tables.schemas import RECOMMENDATIONS, TOP_N, TableSchema

Row = tuple[str, int, str, float]
TWO: list[Row] = [("007", 1, "ä b", 0.9), ("007", 2, "q\"'", 0.5)]
COLUMNS = (
    "user_id string, rank int, item_id string, score double, probability double, has_history boolean, run_id string"
)


def lists(spark: SparkSession, rows: list[Row], run_id: str = "run 1") -> DataFrame:
    return spark.createDataFrame([(*row, 0.5, True, run_id) for row in rows], COLUMNS)


def staged(spark: SparkSession, rows: list[Row], run_id: str) -> DataFrame:
    schema = T.StructType([T.StructField(column.name, column.type) for column in TOP_N.columns])
    return spark.createDataFrame([(run_id, *row, 0.5, True, 0, None) for row in rows], schema)


def log_of(tables: Tables, name: str) -> list[Path]:
    return sorted(Path(tables.place(name), "_delta_log").glob("*.json"))


def changes(tables: Tables, name: str) -> list[Path]:
    """The commits that add or remove rows."""
    return [file for file in log_of(tables, name) if '"add":' in file.read_text() or '"remove":' in file.read_text()]


def test_first_commit_carries_rows_constraints_and_metadata_at_once(spark: SparkSession, tables: Tables) -> None:
    assert not tables.exists("recommendations")
    tables.replace(RECOMMENDATIONS, lists(spark, TWO), {"run_id": "run 1"})
    first = log_of(tables, "recommendations")[0].read_text()
    for name in ("rank_from_1", "score_in_unit", "user_id_given"):
        assert f"delta.constraints.{name}" in first
    assert '"add":' in first
    assert len(changes(tables, "recommendations")) == 1
    assert tables.commits("recommendations") == [{"run_id": "run 1"}]


def test_replace_shows_the_new_rows_whole_and_keeps_the_old_version(spark: SparkSession, tables: Tables) -> None:
    tables.replace(RECOMMENDATIONS, lists(spark, TWO), {"run_id": "run 1"})
    before = tables.version("recommendations")
    tables.replace(RECOMMENDATIONS, lists(spark, [("8", 1, "x", 0.1)], "run 2"), {"run_id": "run 2"})
    assert [row["user_id"] for row in tables.read("recommendations").collect()] == ["8"]
    assert tables.version("recommendations") == before + 1
    assert [commit["run_id"] for commit in tables.commits("recommendations")] == ["run 2", "run 1"]
    old = spark.read.option("versionAsOf", before).format("delta").load(tables.place("recommendations"))
    assert old.count() == 2


def test_replace_if_changed_commits_only_other_rows(spark: SparkSession, tables: Tables) -> None:
    assert tables.replace_if_changed(RECOMMENDATIONS, lists(spark, TWO), {"run_id": "a"})
    version = tables.version("recommendations")
    assert not tables.replace_if_changed(RECOMMENDATIONS, lists(spark, TWO[::-1]), {"run_id": "b"})
    assert tables.version("recommendations") == version
    assert tables.replace_if_changed(RECOMMENDATIONS, lists(spark, TWO[:1]), {"run_id": "c"})
    assert tables.read("recommendations").count() == 1


def test_content_digest_sees_a_value_move_to_another_column_and_a_column_renamed(spark: SparkSession) -> None:
    columns = "a string, b string"
    first = spark.createDataFrame([("x", None)], columns)
    moved = spark.createDataFrame([(None, "x")], columns)
    renamed = spark.createDataFrame([("x", None)], "a string, c string")
    twice = spark.createDataFrame([("x", None), ("x", None)], columns)
    assert len({content_digest(frame) for frame in (first, moved, renamed, twice)}) == 4


def test_replace_rows_leaves_the_other_runs_alone(spark: SparkSession, tables: Tables) -> None:
    mine, other = "it's \\ mine", "other"
    for run_id in (mine, other):
        tables.replace_rows(TOP_N, staged(spark, TWO, run_id), run_predicate(run_id), {"run_id": run_id})
    tables.replace_rows(TOP_N, staged(spark, TWO[:1], mine), run_predicate(mine), {"run_id": mine})
    counts = {row["run_id"]: row["count"] for row in tables.read("top_n").groupBy("run_id").count().collect()}
    assert counts == {mine: 1, other: 2}
    with pytest.raises(InputError, match=r"table top_n: not written to .*does not conform to partial table overwrite"):
        tables.replace_rows(TOP_N, staged(spark, TWO, "third"), run_predicate(mine), {"run_id": mine})
    assert tables.read("top_n").count() == 3


@pytest.mark.parametrize(
    ("row", "broken"),
    [
        (("u", 0, "x", 0.5), "rank_from_1"),
        (("u", 1, "x", 1.5), "score_in_unit"),
        (("u", 1, "x", float("nan")), "score_in_unit"),
        ((None, 1, "x", 0.5), "user_id_given"),
    ],
)
def test_a_row_that_breaks_a_constraint_leaves_the_table_as_it_was(
    spark: SparkSession, tables: Tables, row: Row, broken: str
) -> None:
    tables.replace(RECOMMENDATIONS, lists(spark, TWO), {})
    with pytest.raises(InputError, match=f"table recommendations: not written to .*CHECK constraint {broken}"):
        tables.replace(RECOMMENDATIONS, lists(spark, [*TWO, row]), {})
    assert tables.read("recommendations").count() == 2


def test_a_table_of_somebody_else_is_refused_and_left_alone(spark: SparkSession, tables: Tables) -> None:
    lists(spark, TWO).write.format("delta").save(tables.place("recommendations"))
    with pytest.raises(ConflictError, match="lacks this project's constraints; it is left alone"):
        tables.replace(RECOMMENDATIONS, lists(spark, TWO[:1]), {})
    assert tables.read("recommendations").count() == 2


def test_a_table_of_another_version_is_refused_with_the_columns_that_differ(
    spark: SparkSession, tables: Tables
) -> None:
    older = TableSchema(
        RECOMMENDATIONS.name, "older", RECOMMENDATIONS.key, RECOMMENDATIONS.columns[:-1], RECOMMENDATIONS.checks
    )
    tables.replace(RECOMMENDATIONS, lists(spark, TWO), {})
    with pytest.raises(ConflictError, match=r"differ from this version's: \[\('run_id', 'string'\)\]"):
        tables.replace(older, lists(spark, TWO), {})


def test_items_follow_the_columns_of_new_data(spark: SparkSession, tables: Tables) -> None:
    tables.replace(schemas.items({}), spark.createDataFrame([("1", "One")], "item_id string, title string"), {})
    dated = spark.createDataFrame([("1", "One", 1999)], "item_id string, title string, year long")
    tables.replace(schemas.items({"year": T.LongType()}), dated, {})
    assert [tuple(row) for row in tables.read("items").collect()] == [("1", "One", 1999)]


def test_a_name_that_the_catalog_has_for_another_place_is_refused_before_anything_is_written(
    spark: SparkSession, tables: Tables, tmp_path: Path
) -> None:
    tables.replace(RECOMMENDATIONS, lists(spark, TWO), {})
    other = Tables(spark, TablesConfig(root=str(tmp_path / "other"), database=tables.config.database))
    with pytest.raises(ConflictError, match=f"catalog: {tables.reference('recommendations')} is .*/tables/.*expected"):
        other.replace(RECOMMENDATIONS, lists(spark, TWO), {})
    assert not other.exists("recommendations")


def test_a_name_that_is_a_view_is_refused(spark: SparkSession, tables: Tables) -> None:
    tables.create_view("recommendations", "SELECT 1 AS one")
    with pytest.raises(ConflictError, match="is a view, expected"):
        tables.replace(RECOMMENDATIONS, lists(spark, TWO), {})
    assert not tables.exists("recommendations")


def test_places_are_compared_as_hadoop_writes_them(spark: SparkSession) -> None:
    context: Any = spark.sparkContext
    settings = context._jsc.hadoopConfiguration()
    before = settings.get("fs.defaultFS")
    settings.set("fs.defaultFS", "hdfs://localhost:8020")
    try:
        told = {hadoop.qualified(spark, place) for place in ("/lake/t", "hdfs:/lake/t", "hdfs:///lake/t")}
        assert told == {"hdfs://localhost:8020/lake/t"}
        assert hadoop.qualified(spark, Tables(spark, TablesConfig(root="file:///lake")).place("t")) == "file:/lake/t"
    finally:
        settings.set("fs.defaultFS", before)


def test_a_root_of_any_shape_serves_by_path_and_by_name(spark: SparkSession, tables_config: TablesConfig) -> None:
    root = f"{tables_config.root}/../a b é 100%20 it's"
    tables = Tables(spark, TablesConfig(root=root, database=tables_config.database))
    for run_id in ("one", "two"):
        tables.replace(RECOMMENDATIONS, lists(spark, TWO, run_id), {})
    assert spark.table(tables.reference("recommendations")).select("run_id").distinct().collect()[0][0] == "two"


@pytest.mark.parametrize(
    ("root", "place"),
    [
        ("file:///lake", "file:/lake/items"),
        ("file:/lake/", "file:/lake/items"),
        ("hdfs:///lake", "hdfs:///lake/items"),
        ("/lake", "/lake/items"),
        ("s3a://bucket/lake/", "s3a://bucket/lake/items"),
        ("dbfs:/lake", "dbfs:/lake/items"),
    ],
)
def test_a_root_with_a_scheme_is_a_place_of_its_own(spark: SparkSession, root: str, place: str) -> None:
    assert Tables(spark, TablesConfig(root=root)).place("items") == place


@pytest.mark.parametrize("scheme", ["file:", "file://"])
def test_a_root_of_a_url_serves_by_path_and_by_name(
    spark: SparkSession, tables_config: TablesConfig, scheme: str
) -> None:
    tables = Tables(spark, TablesConfig(root=f"{scheme}{tables_config.root}", database=tables_config.database))
    for run_id in ("one", "two"):
        tables.replace(RECOMMENDATIONS, lists(spark, TWO, run_id), {})
    assert spark.table(tables.reference("recommendations")).select("run_id").distinct().collect()[0][0] == "two"


def test_a_removed_folder_or_a_lost_catalog_entry_heals_with_the_next_write(
    spark: SparkSession, tables: Tables
) -> None:
    tables.replace(RECOMMENDATIONS, lists(spark, TWO), {})
    shutil.rmtree(tables.place("recommendations"))
    tables.replace(RECOMMENDATIONS, lists(spark, TWO[:1]), {})
    assert spark.table(tables.reference("recommendations")).count() == 1
    spark.sql(f"DROP TABLE {tables.reference('recommendations')}")
    tables.replace(RECOMMENDATIONS, lists(spark, TWO), {})
    assert spark.table(tables.reference("recommendations")).count() == 2


def test_without_a_root_the_catalog_decides_where(spark: SparkSession, tables_config: TablesConfig) -> None:
    tables = Tables(spark, TablesConfig(root=None, database=tables_config.database))
    tables.replace(RECOMMENDATIONS, lists(spark, TWO), {"run_id": "run 1"})
    assert tables.place("recommendations") == f"{tables_config.database}.recommendations"
    assert tables.exists("recommendations")
    assert tables.read("recommendations").count() == 2
    assert tables.commits("recommendations") == [{"run_id": "run 1"}]
    for run_id in ("a", "b", "a"):
        rows = staged(spark, TWO, run_id)
        tables.replace_rows(TOP_N, rows, run_predicate(run_id), {"run_id": run_id})
    assert sorted(row.run_id for row in tables.read("top_n").collect()) == ["a", "a", "b", "b"]
    first = tables.version("recommendations")
    tables.replace(RECOMMENDATIONS, lists(spark, TWO[:1]), {"run_id": "run 2"})
    assert tables.read("recommendations").count() == 1
    assert tables.read("recommendations", version=first).count() == 2
    for kinds in ({}, {"year": T.LongType()}):
        more = [f"null::{kind.simpleString()} {name}" for name, kind in kinds.items()]
        tables.replace(schemas.items(kinds), spark.sql("SELECT 'a' item_id, 'A' title").selectExpr("*", *more), {})
    assert tables.read("items").columns == ["item_id", "title", "year"]


@pytest.mark.parametrize("other", ["VIEW {} AS SELECT 1 x", "TABLE {} (x int) USING parquet"])
def test_without_a_root_what_is_no_delta_table_is_left_alone(
    spark: SparkSession, tables_config: TablesConfig, other: str
) -> None:
    tables = Tables(spark, TablesConfig(root=None, database=f"{tables_config.database}_{other[0].lower()}"))
    spark.sql(f"CREATE DATABASE {tables.config.database}")
    spark.sql(f"CREATE {other.format(tables.place('recommendations'))}")
    for attempt in (
        lambda: tables.expect_room(RECOMMENDATIONS),
        lambda: tables.replace(RECOMMENDATIONS, lists(spark, TWO), {}),
    ):
        with pytest.raises(ConflictError, match="is no Delta table; it is left alone"):
            attempt()


@pytest.mark.parametrize(
    "change",
    ["ADD CONSTRAINT early CHECK (rank < 100)", "UNSET TBLPROPERTIES ('a')", "SET TBLPROPERTIES ('b' = '1')"],
)
def test_a_commit_of_no_row_leaves_the_state_of_the_rows(spark: SparkSession, tables: Tables, change: str) -> None:
    tables.replace(RECOMMENDATIONS, lists(spark, TWO), {"run_id": "run 1"})
    spark.sql(f"ALTER TABLE {tables.reference('recommendations')} SET TBLPROPERTIES ('a' = '1')")
    before = tables.state("recommendations")
    spark.sql(f"ALTER TABLE {tables.reference('recommendations')} {change}")
    after = tables.state("recommendations")
    assert after.version == before.version + 1
    assert (after.of_rows, after.made) == (before.of_rows, {"run_id": "run 1"})


def test_a_missing_table_is_named_with_its_place(tables: Tables) -> None:
    with pytest.raises(InputError, match=r"table items: not found at .*/tables/items; run the job that writes it"):
        tables.read("items")
    assert tables.commits("items") == []


def test_a_writer_that_another_one_overtakes_gets_a_conflict(spark: SparkSession, tables: Tables) -> None:
    tables.replace(RECOMMENDATIONS, lists(spark, TWO), {})
    log = log_of(tables, "recommendations")
    first, following = str(log[0]), str(log[-1].with_name(f"{len(log):020d}.json"))

    def overtake(batches):  # type: ignore[no-untyped-def]
        shutil.copy(first, following)  # a commit of somebody else, while ours is at work
        yield from batches

    slow = lists(spark, TWO).coalesce(1).mapInPandas(overtake, COLUMNS)
    with pytest.raises(ConflictError, match=r"table recommendations: another writer committed to .* first; run again"):
        tables.replace(RECOMMENDATIONS, slow, {})


def test_an_error_of_ours_in_a_worker_keeps_its_kind(spark: SparkSession, tables: Tables) -> None:
    def damaged(batches):  # type: ignore[no-untyped-def]
        raise CheckpointError("checkpoint: weights.safetensors is damaged")
        yield from batches

    def foreign(batches):  # type: ignore[no-untyped-def]
        raise ZeroDivisionError("worker: nothing to divide by")
        yield from batches

    with pytest.raises(CheckpointError, match=r"^checkpoint: weights\.safetensors is damaged$"):
        tables.replace(RECOMMENDATIONS, lists(spark, TWO).mapInPandas(damaged, COLUMNS), {})
    with pytest.raises(EnvironmentFault, match=r"not written to .*: ZeroDivisionError: worker: nothing to divide by"):
        tables.replace(RECOMMENDATIONS, lists(spark, TWO).mapInPandas(foreign, COLUMNS), {})
    assert not tables.exists("recommendations")


def test_deltalake_reads_the_table_without_spark(spark: SparkSession, tables: Tables) -> None:
    tables.replace(RECOMMENDATIONS, lists(spark, TWO), {"run_id": "run 1"})
    table = DeltaTable(tables.place("recommendations"))
    rows = table.to_pyarrow_table(columns=["user_id", "rank", "item_id"]).to_pylist()
    assert sorted((row["user_id"], row["rank"], row["item_id"]) for row in rows) == [row[:3] for row in TWO]
    comments = {
        field["name"]: field["metadata"].get("comment") for field in json.loads(table.schema().to_json())["fields"]
    }
    assert comments["rank"] == "1 is best, without gaps"


def test_the_view_and_the_comment_are_in_the_catalog(spark: SparkSession, tables: Tables) -> None:
    tables.replace(RECOMMENDATIONS, lists(spark, TWO), {})
    tables.create_view("best", f"SELECT item_id FROM {tables.reference('recommendations')} WHERE rank = 1")
    assert [row[0] for row in spark.table(tables.reference("best")).collect()] == ["ä b"]
    described = spark.sql(f"DESCRIBE DETAIL {tables.reference('recommendations')}").collect()[0]
    assert described["description"] == RECOMMENDATIONS.comment
