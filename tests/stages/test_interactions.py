"""Cleaning interactions: every refusal and its order, duplicates, times, worths and splits of a column."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark.config import PrepareConfig, Source
from flmrec_spark.errors import ConfigError
from flmrec_spark.stages.interactions import clean_interactions
from flmrec_spark.stages.rejects import CONTENT, REFUSED, accepted, rejects
from flmrec_spark.tables import schemas
from flmrec_spark.tables.text_files import MALFORMED


def config(**settings: Any) -> PrepareConfig:
    return PrepareConfig(interactions=Source(path="x", format="csv"), **settings)


def given(spark: SparkSession, names: str, rows: list[tuple[Any, ...]], **types: str) -> DataFrame:
    """Rows as `read_source` gives them: strings unless `types` says otherwise, no row malformed."""
    schema = ", ".join(f"{name} {types.get(name, 'string')}" for name in names.split())
    frame = spark.createDataFrame([(*row, None) for row in rows], f"{schema}, malformed string")
    return frame.withColumnRenamed("malformed", MALFORMED)


def reasons(tagged: DataFrame) -> dict[str, str | None]:
    """Item id -> reason; the tests give every row an item id of its own."""
    return {row[c.ITEM_ID]: row[REFUSED] for row in tagged.collect()}


def test_a_row_is_refused_for_the_first_reason_that_applies(spark: SparkSession) -> None:
    rows = [
        ("u", "kept", "5", "view", "10", "train", None),
        ("u", " kept too ", "0.5", None, "10", "Dev", None),
        (None, "a", "x", "?", "?", "?", "one,two"),
        (" \t\u3000", "b", "x", "?", "?", "?", None),
        ("u" * 21, "d", "x", "?", "?", "?", None),
        ("u", "e", "x", "?", "?", "?", None),
        ("u", "f", "5.5", "?", "?", "?", None),
        ("u", "g", "NaN", "?", "?", "?", None),
        ("u", "h", "5", "?", "?", "?", None),
        ("u", "i", " ", None, "?", "?", None),
        ("u", "j", "5", "view", "?", "?", None),
        ("u", "k", "5", "view", None, "?", None),
        ("u", "l", "5", "view", "10", "?", None),
        ("u", "m", "5", "view", "10", None, None),
        ("u", "n", "5", "view", "10", "test", None),
    ]
    frame = given(spark, " ".join(c.INTERACTION_COLUMNS), [row[:-1] for row in rows[:1]]).limit(0)
    frame = frame.union(spark.createDataFrame(rows, frame.schema))
    known = spark.createDataFrame([(row[1],) for row in rows if row[1] != "n"], "item_id string")
    settings = {"rating_range": [0.5, 5.0], "event_values": {"view": 1.0}, "max_text_chars": 20}
    tagged = clean_interactions(frame, config(split={"by": "column"}, **settings), items=known)
    assert reasons(tagged) == {
        "kept": None,
        " kept too ": None,
        "a": "malformed row",
        "b": "missing user_id",
        "d": "text too long",
        "e": "unreadable rating",
        "f": "rating out of range",
        "g": "rating out of range",
        "h": "unknown event",
        "i": "no rating or event",
        "j": "unreadable timestamp",
        "k": "unreadable timestamp",
        "l": "unknown split",
        "m": "unknown split",
        "n": "item not in items",
    }
    assert {row[c.ITEM_ID]: row[c.SPLIT] for row in accepted(tagged).collect()} == {
        "kept": "train",
        " kept too ": "valid",
    }


def test_a_row_without_an_item_is_refused_and_told_as_it_was(spark: SparkSession) -> None:
    frame = given(spark, "user_id item_id rating", [("ü", None, "1"), ("u", "  ", "1"), ("u", "i", "1")])
    tagged = clean_interactions(frame, config(), items=None)
    found = {row[CONTENT]: row[REFUSED] for row in tagged.collect()}
    assert found == {
        '{"user_id":"ü","rating":"1"}': "missing item_id",
        '{"user_id":"u","item_id":"  ","rating":"1"}': "missing item_id",
        None: None,
    }


_TIMES = {
    "964982703": "2000-07-30 18:45:03",
    "964982703.5": "2000-07-30 18:45:03.5",
    "964982703123": "2000-07-30 18:45:03.123",
    "-1": "1969-12-31 23:59:59",
    "2020-02-29": "2020-02-29 00:00:00",
    "2020-02-29T10:00:00Z": "2020-02-29 10:00:00",
    "2020-02-29 10:00:00+08:00": "2020-02-29 02:00:00",
    "2021-02-29": None,
    "12:30": None,
    "2020": "1970-01-01 00:33:40",
    "964982703123456": "2000-07-30 18:45:03.123456",
    "964982703123456000": "2000-07-30 18:45:03.123456",
    "1e30": None,
    "NaN": None,
    "Infinity": None,
    "yesterday": None,
    "": None,
}


def _read_times(spark: SparkSession, values: list[Any], pattern: str, kind: str = "string") -> dict[Any, str | None]:
    rows = [("u", f"{place:02}", value) for place, value in enumerate(values)]
    frame = given(spark, "user_id item_id timestamp", rows, timestamp=kind)
    tagged = clean_interactions(frame, config(timestamp_format=pattern), items=None)
    found = {row[c.ITEM_ID]: row for row in tagged.selectExpr("*", "cast(timestamp as string) as text").collect()}
    for row in found.values():
        assert row[REFUSED] == (None if row.text else "unreadable timestamp")
    return {value: found[item].text for _, item, value in rows}


def test_auto_reads_seconds_milliseconds_and_iso_text(spark: SparkSession) -> None:
    assert _read_times(spark, list(_TIMES), "auto") == _TIMES


def test_a_named_unit_or_pattern_reads_nothing_else(spark: SparkSession) -> None:
    assert _read_times(spark, ["1000", "2020-01-01"], "milliseconds") == {
        "1000": "1970-01-01 00:00:01",
        "2020-01-01": None,
    }
    assert _read_times(spark, ["1e9", "x", "1e11"], "seconds") == {
        "1e9": "2001-09-09 01:46:40",
        "x": None,
        "1e11": None,  # of the year 5138
    }
    assert _read_times(spark, [20200131, 20200132], "yyyyMMdd", "long") == {
        20200131: "2020-01-31 00:00:00",
        20200132: None,
    }


def test_native_times_are_taken_as_they_are(spark: SparkSession) -> None:
    time = datetime(2020, 1, 1, 12, tzinfo=UTC)
    assert _read_times(spark, [time, None], "auto", "timestamp") == {time: "2020-01-01 12:00:00", None: None}
    assert _read_times(spark, [time.date()], "auto", "date") == {time.date(): "2020-01-01 00:00:00"}
    assert _read_times(spark, [1577880000], "auto", "int") == {1577880000: "2020-01-01 12:00:00"}


def test_the_value_is_the_rating_or_the_worth_or_one(spark: SparkSession) -> None:
    worth = config(event_values={"view": 1, "buy": 3}, liked_at_least=2)
    rows = [("u", "a", None, "view"), ("u", "b", None, "buy"), ("u", "c", "1.5", "buy"), ("u", "d", "2", None)]
    tagged = clean_interactions(given(spark, "user_id item_id rating event", rows), worth, items=None)
    assert sorted((row.item_id, row.value, row.is_liked) for row in accepted(tagged).collect()) == [
        ("a", 1.0, False),
        ("b", 3.0, True),
        ("c", 1.5, False),
        ("d", 2.0, True),
    ]
    bare = accepted(clean_interactions(given(spark, "user_id item_id", [("u", "a")]), config(), items=None)).collect()
    assert [(row.value, row.is_liked, row.rating, row.event) for row in bare] == [(1.0, True, None, None)]


def test_a_threshold_with_nothing_to_compare_is_a_config_error(spark: SparkSession) -> None:
    no_worth = r"prepare.liked_at_least: got 4, expected null, as the .* have no rating and no event"
    with pytest.raises(ConfigError, match=no_worth):
        clean_interactions(
            given(spark, "user_id item_id Rating", [("u", "i", "5")]), config(liked_at_least=4.0), items=None
        )


def test_a_threshold_of_one_with_nothing_to_compare_is_one_too(spark: SparkSession) -> None:
    rows = given(spark, "user_id item_id label", [("u", "i", "0"), ("u", "j", "1")])
    with pytest.raises(ConfigError, match=r"prepare.liked_at_least: got 1, expected null"):
        clean_interactions(rows, config(liked_at_least=1.0), items=None)


def test_a_column_split_that_is_not_used_is_told_of(spark: SparkSession, caplog: pytest.LogCaptureFixture) -> None:
    rows = given(spark, "user_id item_id split", [("u", "i", "train"), ("u", "j", "test")])
    for by, is_told in (("column", False), ("user_time", True)):
        found = clean_interactions(rows, config(split={"by": by}), items=None)
        assert {row.split for row in found.collect()} == ({None} if is_told else {"train", "test"})
        assert ("the column split is not used, as prepare.split.by is user_time" in caplog.text) == is_told


def test_events_without_worth_and_global_time_without_times_are_config_errors(spark: SparkSession) -> None:
    with pytest.raises(ConfigError, match=r"prepare.event_values: got none, expected what each event is worth"):
        clean_interactions(given(spark, "user_id item_id event", [("u", "i", "view")]), config(), items=None)
    with pytest.raises(ConfigError, match=r"prepare.split.by: got global_time, expected user_time.*no timestamp"):
        by_time = config(split={"by": "global_time"})
        clean_interactions(given(spark, "user_id item_id", [("u", "i")]), by_time, items=None)


def test_rejects_fit_their_table_and_are_numbered_alike_in_every_run(spark: SparkSession) -> None:
    rows = [("u", f"i{n}", "x") for n in range(40)] + [("u", "twice", "x")] * 3 + [("u", "long" * 1000, "x")]

    def written(partitions: int) -> list[Any]:
        frame = given(spark, "user_id item_id rating", rows).repartition(partitions)
        tagged = clean_interactions(frame, config(), items=None)
        made = rejects(tagged, run_id="r", job="prepare", source="interactions")
        return sorted(schemas.REJECTS.select(made).collect())

    first = written(1)
    assert first == written(3)
    assert len({row.row for row in first}) == len(rows) == len(first)
    assert json.loads(first[0].content)["rating"] == "x"
    assert max(len(row.content) for row in first) == 2000


def test_ratings_are_read_as_they_are_written(spark: SparkSession) -> None:
    told = [("u", f"{place}", value) for place, value in enumerate(["4.1", "true", "FALSE", "no", "y", "?", "NaN"])]
    tagged = clean_interactions(given(spark, "user_id item_id rating", told), config(liked_at_least=0.5), items=None)
    found = {row[c.ITEM_ID]: (row[c.RATING], row[c.IS_LIKED]) for row in accepted(tagged).collect()}
    assert found == {"0": (4.1, True), "1": (1.0, True), "2": (0.0, False), "3": (0.0, False), "4": (1.0, True)}
    floats = [("u", "a", 4.1, None), ("u", "b", float("nan"), "view"), ("u", "c", float("nan"), None)]
    frame = given(spark, "user_id item_id rating event", floats, rating="float")
    own = config(liked_at_least=4.1, event_values={"view": 1.0}, rating_range=[1.0, 4.1])
    tagged = clean_interactions(frame, own, items=None)
    assert reasons(tagged) == {"a": None, "b": None, "c": "no rating or event"}
    found = {row[c.ITEM_ID]: (row[c.VALUE], row[c.IS_LIKED]) for row in accepted(tagged).collect()}
    assert found == {"a": (4.1, True), "b": (1.0, False)}  # a float is not 4.0999999


def test_a_threshold_that_no_event_reaches_is_a_config_error(spark: SparkSession) -> None:
    frame = given(spark, "user_id item_id event", [("u", "i", "buy")])
    own = config(liked_at_least=7.0, event_values={"view": 1.0, "buy": 3.0})
    with pytest.raises(ConfigError, match=r"prepare.liked_at_least: got 7, expected at most 3"):
        clean_interactions(frame, own, items=None)


def test_a_time_of_a_year_that_no_log_is_of_is_refused(spark: SparkSession) -> None:
    """Such as .NET's default and an end that is not known; Python's datetime cannot hold all of them either."""
    texts = ["0001-01-01T00:00:00", "9999-12-31 23:59:59", "1677-12-31", "2262-01-01", "1678-01-01", "2261-12-31"]
    frame = given(spark, "user_id item_id timestamp", [("u", text, text) for text in texts])
    refused = {"0001-01-01T00:00:00", "9999-12-31 23:59:59", "1677-12-31", "2262-01-01"}
    expected = {text: "unreadable timestamp" if text in refused else None for text in texts}
    assert reasons(clean_interactions(frame, config(), items=None)) == expected
    native = frame.withColumn("timestamp", F.col("timestamp").cast("timestamp"))
    assert reasons(clean_interactions(native, config(), items=None)) == expected
    numbers = given(spark, "user_id item_id timestamp", [("u", "a", "-62135596800"), ("u", "b", "0")])
    assert reasons(clean_interactions(numbers, config(timestamp_format="seconds"), items=None)) == {
        "a": "unreadable timestamp",
        "b": None,
    }
