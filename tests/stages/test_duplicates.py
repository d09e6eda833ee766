"""Rows of one user, item and moment: which are too many, which contradict each other, and which only say it again."""

from __future__ import annotations

import json

import pytest
from pyspark.sql import SparkSession

from flmrec_spark.stages.interactions import clean_interactions
from flmrec_spark.stages.rejects import CONTENT, REFUSED, REPEATED, accepted, rejects
from tests.stages.test_interactions import config, given


def test_of_one_user_item_and_time_the_highest_value_is_kept(spark: SparkSession) -> None:
    rows = [
        ("u", "same", "3", "10"),
        ("u", "same", "3.0", "10"),
        ("u", "other", "2", "10"),
        ("u", "other", "4", "10"),
        ("u", "other", "4", "10"),
        ("u", "other", "1", "11"),
        ("v", "other", "1", "10"),
    ]
    tagged = clean_interactions(given(spark, "user_id item_id rating timestamp", rows), config(), items=None)
    found = [(row.user_id, row.item_id, row.timestamp.second, row.rating, row[REFUSED]) for row in tagged.collect()]
    exact, conflicting = "exact duplicate", "conflicting duplicate"
    assert sorted(row[:4] for row in found if row[4] is None) == [
        ("u", "other", 10, 4.0),
        ("u", "other", 11, 1.0),
        ("u", "same", 10, 3.0),
        ("v", "other", 10, 1.0),
    ]
    assert sorted(row for row in found if row[4] is not None) == [
        ("u", "other", 10, 2.0, conflicting),
        ("u", "other", 10, 4.0, exact),
        ("u", "same", 10, 3.0, exact),
    ]


def test_what_happened_several_times_in_a_moment_is_a_repeat_and_nobody_refuses_it(spark: SparkSession) -> None:
    log = [("u", "i", event, "10") for event in ("view", "view", "buy", "view")]
    log += [("u", "i", "view", "11"), ("u", "j", "view", "10"), ("u", "i", None, "10")]
    tagged = clean_interactions(
        given(spark, "user_id item_id event timestamp", log), config(event_values={"view": 1, "buy": 3}), items=None
    )
    kept = sorted((row.item_id, row.timestamp.second, row.event) for row in accepted(tagged).collect())
    assert kept == [("i", 10, "buy"), ("i", 11, "view"), ("j", 10, "view")]
    refused = rejects(tagged, run_id="r", job="prepare", source="interactions").collect()
    assert [(row.reason, json.loads(row.content)["user_id"]) for row in refused] == [("no rating or event", "u")]
    assert [row[CONTENT] for row in tagged.collect() if row[REFUSED] == REPEATED] == [None] * 3


def test_one_moment_in_two_splits_contradicts_itself(spark: SparkSession) -> None:
    rows = [("u", "i", "view", "10", split) for split in ("train", "train", "test")]
    worth = config(event_values={"view": 1}, split={"by": "column"})
    tagged = clean_interactions(given(spark, "user_id item_id event timestamp split", rows), worth, items=None)
    assert sorted((row.split, str(row[REFUSED])) for row in tagged.collect()) == [
        ("test", "None"),
        ("train", "conflicting duplicate"),
        ("train", "exact duplicate"),
    ]


def test_of_plain_pairs_and_of_ratings_beside_events_only_ratings_are_duplicates(spark: SparkSession) -> None:
    pairs = clean_interactions(given(spark, "user_id item_id", [("u", "i")] * 3), config(), items=None)
    assert sorted(str(row[REFUSED]) for row in pairs.collect()) == ["None", REPEATED, REPEATED]
    rows = [("u", "i", "4", None), ("u", "i", "2", "view"), ("u", "i", None, "view"), ("u", "i", None, "buy")]
    worth = config(event_values={"view": 1, "buy": 5})
    mixed = clean_interactions(given(spark, "user_id item_id rating event", rows), worth, items=None)
    found = {(row.rating, row.event): row[REFUSED] for row in mixed.collect()}
    conflicting = "conflicting duplicate"
    assert found == {
        (4.0, None): conflicting,
        (2.0, "view"): conflicting,
        (None, "view"): REPEATED,
        (None, "buy"): None,
    }


def test_refused_rows_do_not_count_as_duplicates(spark: SparkSession) -> None:
    rows = [("u", "i", "9"), ("u", "i", "9"), ("u", "i", "3")]
    tagged = clean_interactions(given(spark, "user_id item_id rating", rows), config(rating_range=[1, 5]), items=None)
    assert sorted(str(row[REFUSED]) for row in tagged.collect()) == [
        "None",
        "rating out of range",
        "rating out of range",
    ]


@pytest.mark.parametrize(("time", "kept"), [(None, ["test", "train"]), ("10", ["test"])])
def test_a_pair_in_two_splits_happened_twice_unless_both_say_the_same_time(
    spark: SparkSession, time: str | None, kept: list[str]
) -> None:
    names = "user_id item_id split rating" + (" timestamp" if time else "")
    rows = [("u", "i", split, "3", *([time] if time else [])) for split in ("train", "train", "test")]
    tagged = clean_interactions(given(spark, names, rows), config(split={"by": "column"}), items=None)
    assert sorted(row.split for row in accepted(tagged).collect()) == kept


def test_without_timestamps_a_user_meets_an_item_once(spark: SparkSession) -> None:
    rows = [("u", "i", "3"), ("u", "i", "5"), ("u", "i", "5"), ("u", "j", "1")]
    tagged = clean_interactions(given(spark, "user_id item_id rating", rows), config(), items=None)
    kept = accepted(tagged).collect()
    assert sorted((row.item_id, row.value, row.timestamp) for row in kept) == [("i", 5.0, None), ("j", 1.0, None)]
