"""Moments and splits against plain Python, on ties and on rows that come in any order."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark.config import SplitConfig
from flmrec_spark.stages.splits import with_moments, with_splits

Row = tuple[str, str, int]  # user, item, second


def frame_of(spark: SparkSession, rows: list[Row] | list[tuple[str, str, None]], shuffled: int = 1) -> DataFrame:
    rows = random.Random(shuffled).sample(rows, len(rows))
    timed = [(u, i, None if t is None else datetime.fromtimestamp(t, UTC)) for u, i, t in rows]
    frame = spark.createDataFrame(timed, "user_id string, item_id string, timestamp timestamp")
    return frame.withColumn(c.SPLIT, F.lit(None).cast("string"))


def split(spark: SparkSession, rows: Any, shuffled: int = 1, **settings: Any) -> dict[tuple[str, str, int], Any]:
    """(user, item, moment) -> split."""
    config = SplitConfig(**settings)
    found = with_splits(with_moments(frame_of(spark, rows, shuffled), seed=config.seed), config).collect()
    splits = {(row.user_id, row.item_id, row.moment): row.split for row in found}
    assert len(splits) == len(found) == len(rows)
    return splits


def one_user(n: int) -> list[Row]:
    return [(f"u{n:02}", f"i{k:02}", k) for k in range(1, n + 1)]


def test_rows_of_one_time_share_a_moment_and_rows_without_time_do_not(spark: SparkSession) -> None:
    timed = frame_of(spark, [("u", "a", 9), ("u", "b", 9), ("u", "c", 5), ("v", "a", 7)])
    moments = {(row.user_id, row.item_id): row.moment for row in with_moments(timed, seed=1).collect()}
    assert moments == {("u", "c"): 1, ("u", "a"): 2, ("u", "b"): 2, ("v", "a"): 1}
    bare = [(user, f"i{k}", None) for user in "uv" for k in range(9)]
    orders = []
    for shuffled, seed in ((1, 1), (2, 1), (1, 2)):
        found = with_moments(frame_of(spark, bare, shuffled), seed=seed).collect()
        orders.append({(row.user_id, row.item_id): row.moment for row in found})
    assert orders[0] == orders[1] != orders[2]
    assert sorted(moment for (user, _), moment in orders[0].items() if user == "u") == list(range(1, 10))


def test_user_time_cuts_exactly_at_the_shares(spark: SparkSession) -> None:
    rows = [row for n in range(1, 41) for row in one_user(n)]
    for valid, test in ((0.1, 0.1), (0.3, 0.3), (0.15, 0.05), (0.0, 0.2), (0.123457, 0.033333)):
        found = split(spark, rows, valid_share=valid, test_share=test)
        train_share = 1 - Fraction(str(valid)) - Fraction(str(test))
        for (user, _, k), got in found.items():
            share = Fraction(k, int(user[1:]))
            early = share <= 1 - Fraction(str(test))
            assert got == (c.TRAIN if share <= train_share else c.VALID if early else c.TEST)
    ten = Counter(got for (user, _, _), got in split(spark, one_user(10)).items())
    assert ten == {c.TRAIN: 8, c.VALID: 1, c.TEST: 1}
    assert set(split(spark, one_user(1)).values()) == {c.TEST}


def test_user_time_orders_ties_by_item(spark: SparkSession) -> None:
    rows = [("u", f"i{k}", 5) for k in range(10)]
    found = split(spark, rows)
    assert [item for (_, item, _), got in sorted(found.items()) if got != c.TRAIN] == ["i8", "i9"]


def test_leave_last_out_takes_one_row_each_from_users_of_three(spark: SparkSession) -> None:
    found = split(spark, one_user(2) + one_user(3) + one_user(5), by="leave_last_out")
    by_user = defaultdict(list)
    for (user, _, moment), got in sorted(found.items(), key=lambda entry: entry[0][2]):
        by_user[user].append((moment, got))
    assert [got for _, got in by_user["u02"]] == [c.TRAIN] * 2
    assert [got for _, got in by_user["u03"]] == [c.TRAIN, c.VALID, c.TEST]
    assert [got for _, got in by_user["u05"]] == [c.TRAIN] * 3 + [c.VALID, c.TEST]


@pytest.mark.parametrize("days", [1, 86_400])
def test_global_time_keeps_every_train_row_before_every_later_row(spark: SparkSession, days: int) -> None:
    draw = random.Random(3)
    rows = list({(f"u{draw.randrange(30)}", f"i{draw.randrange(99)}", draw.randrange(40) * days) for _ in range(900)})
    config = SplitConfig(by="global_time", valid_share=0.1, test_share=0.2)
    found = with_splits(with_moments(frame_of(spark, rows), seed=1), config).collect()
    times = sorted(t for _, _, t in rows)
    n = len(times)
    valid_from = next(t for k, t in enumerate(times, start=1) if Fraction(k, n) > Fraction(7, 10))
    test_from = next(t for k, t in enumerate(times, start=1) if Fraction(k, n) > Fraction(8, 10))
    assert len(found) == n
    assert {row.split for row in found} == set(c.SPLITS)
    for row in found:
        time = int(row.timestamp.replace(tzinfo=row.timestamp.tzinfo).timestamp())
        assert row.split == (c.TEST if time >= test_from else c.VALID if time >= valid_from else c.TRAIN)


def test_random_depends_on_the_seed_and_on_nothing_else(spark: SparkSession) -> None:
    rows = [(f"u{user}", f"i{k}", k) for user in range(40) for k in range(50)]
    first = split(spark, rows, shuffled=1, by="random", seed=1)
    assert first == split(spark, rows, shuffled=2, by="random", seed=1)
    assert first != split(spark, rows, shuffled=1, by="random", seed=2)
    shares = Counter(first.values())
    assert abs(shares[c.VALID] - 200) < 50 and abs(shares[c.TEST] - 200) < 50


@pytest.mark.parametrize(("by", "place"), [("cold_users", 0), ("cold_items", 1)])
def test_who_or_what_is_held_out_has_no_row_elsewhere_and_the_seed_decides(
    spark: SparkSession, by: str, place: int
) -> None:
    rows = [(f"u{user:02}", f"i{(7 * user + 3 * k) % 60:02}", k) for user in range(60) for k in range(5)]
    first = split(spark, rows, shuffled=1, by=by, seed=1, valid_share=0.2, test_share=0.2)
    splits_of = defaultdict(set)
    for row, got in first.items():
        splits_of[row[place]].add(got)
    assert all(len(got) == 1 for got in splits_of.values())
    shares = Counter(got for (got,) in splits_of.values())
    assert abs(shares[c.VALID] - 12) < 9 and abs(shares[c.TEST] - 12) < 9 and shares[c.TRAIN] > 20
    assert first == split(spark, rows, shuffled=2, by=by, seed=1, valid_share=0.2, test_share=0.2)
    assert first != split(spark, rows, by=by, seed=2, valid_share=0.2, test_share=0.2)


def test_a_column_without_valid_rows_has_the_last_of_each_users_train_rows(
    spark: SparkSession, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row for n in (1, 3, 10, 20) for row in one_user(n)]
    given = with_moments(frame_of(spark, rows), seed=1)
    is_test = (F.col("user_id") == "u20") & (F.col(c.MOMENT) > 10)
    given = given.withColumn(c.SPLIT, F.when(is_test, c.TEST).otherwise(c.TRAIN))
    config = SplitConfig(by="column", valid_share=0.1)
    found = with_splits(given, config).collect()
    assert len(found) == len(rows)
    valid = sorted((row.user_id, row.moment) for row in found if row.split == c.VALID)
    assert valid == [("u03", 3), ("u10", 10), ("u20", 10)]  # the only row of u01 is left to learn from
    assert sum(row.split == c.TEST for row in found) == 10
    assert "prepare.split: no row is valid: the last 0.1 of each user's train rows are" in caplog.text
    unchanged = with_splits(given, SplitConfig(by="column", valid_share=0.0)).collect()
    assert {row.split for row in unchanged} == {c.TRAIN, c.TEST}
    with_valid = given.withColumn(c.SPLIT, F.when(F.col("user_id") == "u03", c.VALID).otherwise(F.col(c.SPLIT)))
    assert sum(row.split == c.VALID for row in with_splits(with_valid, config).collect()) == 3
