"""Prompts of a world of five users, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from flmrec_spark.errors import InputError
from flmrec_spark.stages.user_prompts import user_prompts, with_candidates
from flmrec_spark.tables.spark_errors import worker_error

ROWS = [  # in no order
    ("ann", "b", 2, 5.0, True, "train"),
    ("ann", "a", 2, 1.0, False, "train"),
    ("ann", "c", 9, 4.0, True, "valid"),
    ("ann", "d", 10, 4.0, True, "test"),
    ("ann", "a", 1, 3.0, False, "train"),
    ("ann", "ä", 2, 2.0, False, "train"),
    ("0042", "a", 1, 1.0, True, "train"),
    ("tested", "a", 1, 1.0, True, "test"),
    ("stranger", "a", 1, 1.0, True, "train"),  # not in users
]
USERS = [("ann", "x", 1), ("0042", None, 2), ("tested", "y", None), ("o'n\"ew 用户", "z", 4)]


@pytest.fixture(scope="module")
def frames(spark: SparkSession) -> tuple[DataFrame, DataFrame]:
    columns = "user_id string, item_id string, moment int, value double, is_liked boolean, split string"
    # Attribute names that a careless join would meet again.
    users = spark.createDataFrame(USERS, "user_id string, listed string, catalogue int")
    return users, spark.createDataFrame(ROWS, columns)


def by_user(frame: DataFrame) -> dict[str, Any]:
    rows = frame.collect()
    found = {row.user_id: row for row in rows}
    assert len(found) == len(rows)
    return found


def entries(row: Any) -> list[tuple[str, bool, float]]:
    return [tuple(entry) for entry in row.history]


def test_a_history_is_newest_first_then_by_item_and_of_the_given_splits_only(frames) -> None:
    found = by_user(user_prompts(*frames, splits=["train", "valid"], history_length=4, exclude_seen=True))
    assert set(found) == {user for user, *_ in USERS}
    assert entries(found["ann"]) == [("c", True, 4.0), ("a", False, 1.0), ("b", True, 5.0), ("ä", False, 2.0)]
    assert sorted(found["ann"].excluded) == ["a", "b", "c", "ä"]  # once each, also what the history has no room for
    assert (entries(found["0042"]), found["0042"].excluded) == ([("a", True, 1.0)], ["a"])
    assert (found["ann"].listed, found["ann"].catalogue, found["0042"].listed) == ("x", 1, None)


def test_of_all_users_a_stranger_is_an_error_of_ours_and_whoever_did_nothing_is_none(frames) -> None:
    users, interactions = frames
    asked = {"splits": ["train"], "history_length": 4, "exclude_seen": True, "are_all": True}
    with pytest.raises(PySparkException) as fault:
        user_prompts(users, interactions, **asked).collect()
    named = worker_error(fault.value)
    assert isinstance(named, InputError)
    assert str(named) == "table users: lacks ids that interactions name; run jobs/prepare.py again"
    known = interactions.where("user_id != 'stranger'")
    asked.pop("are_all")
    expected = by_user(user_prompts(users, known, **asked))
    assert by_user(user_prompts(users, known, **asked, are_all=True)) == expected


def test_a_user_without_rows_has_an_empty_history_and_nothing_excluded(frames) -> None:
    found = by_user(user_prompts(*frames, splits=["train"], history_length=4, exclude_seen=True))
    for user in ("tested", "o'n\"ew 用户"):
        assert (found[user].history, found[user].excluded, found[user].candidates) == ([], [], None)


def test_with_seen_items_allowed_nothing_is_excluded(frames) -> None:
    prompts = user_prompts(*frames, splits=["train", "test"], history_length=1, exclude_seen=False)
    assert {user: (entries(row), row.excluded) for user, row in by_user(prompts).items()} == {
        "ann": ([("d", True, 4.0)], []),
        "0042": ([("a", True, 1.0)], []),
        "tested": ([("a", True, 1.0)], []),
        "o'n\"ew 用户": ([], []),
    }


def test_candidates_are_each_users_own_in_a_fixed_order_and_none_without_a_row(spark: SparkSession, frames) -> None:
    pairs = [("ann", "z"), ("ann", "a"), ("ann", "z"), ("0042", None), ("stranger", "a"), (None, "a")]
    prompts = user_prompts(*frames, splits=["train"], history_length=1, exclude_seen=True)
    asked = with_candidates(prompts, spark.createDataFrame(pairs, "user_id string, item_id string"))
    assert asked.columns == prompts.columns
    found = by_user(asked)
    assert {user: row.candidates for user, row in found.items()} == {
        "ann": ["a", "z"],
        "0042": [],
        "tested": [],
        "o'n\"ew 用户": [],
    }
    assert (found["ann"].listed, found["ann"].catalogue) == ("x", 1)
