"""Baselines on a world of three users and four items, worked out by hand."""

from __future__ import annotations

import math

import pytest
from pyspark.sql import DataFrame, SparkSession

from flmrec_spark.stages import baselines

HISTORY = [
    ("ann", "a", True),
    ("ann", "b", True),
    ("ann", "c", False),
    ("bob", "a", True),
    ("bob", "b", False),
    ("bob", "a", True),  # again, at another time
]
MEAN = (4 + 1) / (6 + 2)
ITEM_MEAN = {
    "a": (3 + 5 * MEAN) / (3 + 5),
    "b": (1 + 5 * MEAN) / (2 + 5),
    "c": (0 + 5 * MEAN) / (1 + 5),
    "never seen": MEAN,
}
USER_MEAN = {"ann": (2 + 5 * MEAN) / (3 + 5), "bob": (2 + 5 * MEAN) / (3 + 5), "new": MEAN}


@pytest.fixture(scope="module")
def history(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(HISTORY, "user_id string, item_id string, is_liked boolean")


@pytest.fixture(scope="module")
def items(spark: SparkSession, history: DataFrame) -> DataFrame:
    catalogue = spark.createDataFrame([(item, item.upper()) for item in ITEM_MEAN], "item_id string, title string")
    return baselines.item_scores(history, catalogue)


@pytest.fixture(scope="module")
def users(spark: SparkSession, history: DataFrame) -> DataFrame:
    return baselines.user_scores(history, spark.createDataFrame([(user,) for user in USER_MEAN], "user_id string"))


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_item_scores_count_and_shrink_and_know_items_that_nobody_touched(items: DataFrame) -> None:
    got = {row.item_id: (row.popularity, row.item_mean) for row in items.collect()}
    assert {item: count for item, (count, _) in got.items()} == {"a": 3.0, "b": 2.0, "c": 1.0, "never seen": 0.0}
    assert {item: mean for item, (_, mean) in got.items()} == pytest.approx(ITEM_MEAN)


def test_a_pairs_score_adds_what_user_and_item_say_in_log_odds(
    spark: SparkSession, items: DataFrame, users: DataFrame
) -> None:
    pairs = [("ann", "a"), ("new", "c"), ("bob", "never seen"), ("new", "never seen")]
    rows = spark.createDataFrame(pairs, "user_id string, item_id string")
    scored = {(row.user_id, row.item_id): row for row in baselines.score_rows(rows, items=items, users=users).collect()}
    assert set(scored) == set(pairs)
    for (user, item), row in scored.items():
        expected = logit(ITEM_MEAN[item]) + logit(USER_MEAN[user]) - logit(MEAN)
        assert logit(row.user_item_mean) == pytest.approx(expected)
        assert (row.user_mean, row.item_mean) == pytest.approx((USER_MEAN[user], ITEM_MEAN[item]))
    assert scored["new", "never seen"].user_item_mean == pytest.approx(MEAN)


def test_everything_liked_still_leaves_probabilities_below_one(spark: SparkSession) -> None:
    history = spark.createDataFrame([("u", "i", True)] * 3, "user_id string, item_id string, is_liked boolean")
    items, users = baselines.item_scores(history, history), baselines.user_scores(history, history.limit(1))
    row = baselines.score_rows(history.limit(1), items=items.limit(1), users=users).collect()[0]
    mean = (3 + 1) / (3 + 2)
    shrunk = (3 + 5 * mean) / (3 + 5)
    assert logit(row.user_item_mean) == pytest.approx(2 * logit(shrunk) - logit(mean))
    assert row.user_item_mean < 1


def test_lists_leave_out_excluded_items_and_break_ties_by_item_id(spark: SparkSession) -> None:
    scores = [("b", 2.0), ("10", 1.0), ("9", 1.0), ("a", 2.0), ("é", 0.0)]
    items = spark.createDataFrame(scores, "item_id string, popularity double")
    excluded = [("new", []), ("ann", ["a", "9", "not an item"]), ("full", ["a", "b", "10", "9"]), ("all", list("ab"))]
    users = spark.createDataFrame(excluded, "user_id string, excluded array<string>")
    lists = baselines.top_n(users, items, by="popularity", n=3, depth=3 + 4).collect()
    got: dict[str, list[tuple[int, str]]] = {}
    for row in sorted(lists, key=lambda row: (row.user_id, row.rank)):
        got.setdefault(row.user_id, []).append((row.rank, row.item_id))
    assert got == {
        "new": [(1, "a"), (2, "b"), (3, "10")],
        "ann": [(1, "b"), (2, "10"), (3, "é")],
        "full": [(1, "é")],
        "all": [(1, "10"), (2, "9"), (3, "é")],
    }
