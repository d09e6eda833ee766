"""Cleaning items and users: types, titles, duplicates, and the ids in the interactions."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from flmrec_spark.config import Source
from flmrec_spark.stages.catalog import attribute_types, clean_items, clean_users, items_of, users_of
from flmrec_spark.stages.rejects import CONTENT, REFUSED, accepted
from flmrec_spark.tables import schemas
from flmrec_spark.tables.text_files import MALFORMED


def frame_of(spark: SparkSession, schema: str, rows: list[tuple[Any, ...]]) -> DataFrame:
    return spark.createDataFrame(rows, f"{schema}, malformed string").withColumnRenamed("malformed", MALFORMED)


def source(**types: Any) -> Source:
    return Source(path="x", format="csv", types=types)


def test_items_are_refused_for_the_first_reason_that_applies(spark: SparkSession) -> None:
    rows = [
        ("a", "A", "1999", "x", None),
        ("b", "B", "", "x", None),
        ("c", "C", "1999.5", "x", None),
        ("d", "D", "1995.0", "x", None),
        (" ", "D", "?", "x", None),
        ("e", "E" * 11, "?", "x", None),
        ("f", "F", "?", "x" * 11, None),
        ("g", "G", "1", "x", "g,G"),
        ("h", "second", "1", "x", None),
        ("h", "first", "2", "x", None),
        ("h", None, "1", "x", None),
    ]
    frame = frame_of(spark, "item_id string, title string, year string, genre string", rows)
    tagged = clean_items(frame, source(year="int"), max_text_chars=10)
    found = sorted((row.item_id, row.title, row.year, row[REFUSED]) for row in tagged.collect() if row.item_id != "h")
    assert found == [
        (" ", "D", None, "missing item_id"),
        ("a", "A", 1999, None),
        ("b", "B", None, None),
        ("c", "C", None, "unreadable year"),
        ("d", "D", 1995, None),
        ("e", "E" * 11, None, "text too long"),
        ("f", "F", None, "text too long"),
        ("g", "G", 1, "malformed row"),
    ]
    again = sorted((row.title, row[REFUSED]) for row in tagged.collect() if row.item_id == "h")
    assert again == [("first", None), ("h", "duplicate item"), ("second", "duplicate item")]
    contents = {row[REFUSED]: row[CONTENT] for row in tagged.collect()}
    assert contents["unreadable year"] == '{"item_id":"c","title":"C","year":"1999.5","genre":"x"}'
    assert contents["malformed row"].endswith('"malformed":"g,G"}')


def test_an_item_without_a_title_is_titled_by_its_id(spark: SparkSession) -> None:
    frame = frame_of(spark, "item_id string, title string", [("a", None, None), ("b", " ", None), ("c", "C", None)])
    tagged = clean_items(frame, source(), max_text_chars=10)
    assert sorted((row.item_id, row.title) for row in accepted(tagged).collect()) == [
        ("a", "a"),
        ("b", "b"),
        ("c", "C"),
    ]
    bare = clean_items(frame_of(spark, "item_id string", [("a", None)]), source(), max_text_chars=10)
    assert [(row.item_id, row.title) for row in accepted(bare).collect()] == [("a", "a")]


def test_attributes_take_the_types_of_the_table(spark: SparkSession) -> None:
    schema = "item_id string, a int, b decimal(5,2), c boolean, d date, e array<string>, f array<double>, "
    schema += "g double, h string, i double, j double"
    row = ("x", 7, Decimal("1.50"), True, None, ["p", None, "q"], [1.5, 2.0], float("nan"), "yes", 3.0, 3.5)
    typed = clean_items(
        frame_of(spark, schema, [(*row, None)]), source(h="boolean", i="int", a="string"), max_text_chars=10
    )
    kinds = [kind.simpleString() for kind in attribute_types(accepted(typed)).values()]
    assert kinds == ["string", "double", "boolean", *["string"] * 3, "double", "boolean", "bigint", "double"]
    (got,) = accepted(typed).collect()
    assert tuple(got) == ("x", "7", 1.5, True, None, "p, q", "1.5, 2.0", None, True, 3, 3.5, "x")
    whole = clean_items(frame_of(spark, schema, [(*row, None)]), source(j="int"), max_text_chars=10)
    assert [row[REFUSED] for row in whole.collect()] == ["unreadable j"]


def test_users_are_those_of_profiles_and_interactions(spark: SparkSession) -> None:
    profiles = frame_of(spark, "user_id string, age string", [("a", "30", None), ("a", "20", None), (None, "1", None)])
    tagged = clean_users(profiles, source(age="int"), max_text_chars=10)
    assert sorted(str(row[REFUSED]) for row in tagged.collect()) == ["None", "duplicate user", "missing user_id"]
    interactions = spark.createDataFrame([("a", "i"), ("b", "i"), ("b", "j")], "user_id string, item_id string")
    users = users_of(interactions, accepted(tagged))
    assert sorted(tuple(row) for row in users.collect()) == [("a", 20), ("b", None)]
    assert attribute_types(users) == {"age": T.LongType()}
    assert sorted(tuple(row) for row in users_of(interactions, None).collect()) == [("a",), ("b",)]


def test_items_of_interactions_fit_the_table(spark: SparkSession) -> None:
    interactions = spark.createDataFrame([("a", "é 1"), ("b", "é 1"), ("b", "j")], "user_id string, item_id string")
    items = items_of(interactions)
    found = schemas.items(attribute_types(items)).select(items).collect()
    assert sorted(tuple(row) for row in found) == [("j", "j"), ("é 1", "é 1")]


def test_a_date_that_is_asked_for_as_a_number_is_unreadable(spark: SparkSession) -> None:
    frame = spark.sql("SELECT 'i' item_id, date '2020-01-02' released, CAST(NULL AS string) `row:malformed`")
    for kind in ("int", "double", "boolean"):
        source = Source(path="x", format="parquet", types={"released": kind})
        (row,) = clean_items(frame, source, max_text_chars=100).collect()
        assert row["row:refused"] == "unreadable released"
