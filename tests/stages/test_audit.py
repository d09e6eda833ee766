"""Every fault that an audit knows, provoked by one change to clean lists, is named, and nothing else is."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import partial
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from flmrec_spark.config import DiversityConfig, ScoreConfig
from flmrec_spark.reranking import values_of
from flmrec_spark.stages import audit, scores

PROMPTS = [  # the attribute of the users is called as a column of the audit
    ("ann", "x", ["a"], None),
    ("bob", "x", [], ["d", "a", "b"]),
    ("cat", "x", ["a", "b", "c", "gone"], None),
    ("full", "x", ["a", "b", "c", "d"], None),
]
CLEAN: dict[tuple[str, int], tuple[str | None, float | None]] = {
    ("ann", 1): ("c", 0.9),
    ("ann", 2): ("b", 0.5),
    ("bob", 1): ("a", 1.0),
    ("bob", 2): ("b", 1.0),
    ("cat", 1): ("d", 0.0),
    ("full", 0): (None, None),
}
LISTABLE = ["a", "b", "c", "d"]
NAN = float("nan")
RULES = ScoreConfig(min_coverage=0.75, max_reject_share=0.2)

Rows = list[tuple[str, int, str | None, float | None]]


def rows(changes: dict[tuple[str, int], tuple[str, float | None] | None] | None = None) -> Rows:
    """The clean lists with some rows put in, replaced, or (None) taken out."""
    merged = {**CLEAN, **(changes or {})}
    return [(*key, *value) for key, value in merged.items() if value is not None]


def counted(spark: SparkSession, lists: Rows, prompts: list[Any] | None = None) -> dict[str, int]:
    full = [
        (user, rank, item, score, score, True, 0, None if rank else scores.NO_CANDIDATES)
        for user, rank, item, score in lists
    ]
    top_n = spark.createDataFrame(full, scores.OUTPUT).coalesce(1)
    schema = "user_id string, listed string, excluded array<string>, candidates array<string>"
    asked = spark.createDataFrame(PROMPTS if prompts is None else prompts, schema).coalesce(1)
    listable = spark.createDataFrame([(item,) for item in LISTABLE], "item_id string").coalesce(1)
    found: DataFrame = audit.list_counts(top_n, asked, listable, n=2)
    return found.crossJoin(audit.short_lists(top_n, asked, listable, n=2)).collect()[0].asDict()


judged = partial(audit.faults, n_items=4, n_rejected_items=0)


def test_clean_lists_have_no_fault(spark: SparkSession) -> None:
    counts = counted(spark, rows())
    assert judged(counts, RULES) == []
    given = {"users": 4, "users_listed": 3, "users_rejected": 1, "rows": 5, "not_full": 1}
    assert counts == dict.fromkeys(counts, 0) | given


@pytest.mark.parametrize(
    ("changes", "counts", "told"),
    [
        ({("full", 0): None}, {"users_lost": 1}, "1 users came in and are neither listed nor rejected"),
        ({("eve", 1): ("a", 0.5)}, {"users_unknown": 1}, "1 listed users are not in the table users"),
        ({("ann", 2): None, ("ann", 3): ("b", 0.5)}, {"rank_gaps": 1}, "1 ranks leave a gap"),
        ({("ann", 2): ("c", 0.5)}, {"repeated_items": 1, "short_lists": 1}, "1 items stand twice in a list"),
        ({("cat", 1): ("d", NAN)}, {"bad_scores": 1}, "1 scores are no number from 0 to 1"),
        ({("cat", 1): ("d", None)}, {"bad_scores": 1}, "1 scores are no number from 0 to 1"),
        ({("cat", 1): ("d", 1.0000001)}, {"bad_scores": 1}, "1 scores are no number from 0 to 1"),
        ({("cat", 1): ("d", -1e-9)}, {"bad_scores": 1}, "1 scores are no number from 0 to 1"),
        ({("ann", 2): ("b", 0.95)}, {"disorders": 1}, "1 rows are not in the order of score, then item_id"),
        ({("bob", 1): ("b", 1.0), ("bob", 2): ("a", 1.0)}, {"disorders": 1}, "1 rows are not in the order of score"),
        ({("ann", 2): ("a", 0.5)}, {"excluded_listed": 1}, "1 listed items were already seen"),
        ({("ann", 2): ("zz", 0.5)}, {"unlistable_listed": 1}, "1 listed items fail score.item_filter or are not in"),
        ({("bob", 2): ("c", 1.0)}, {"not_candidates": 1}, "1 listed pairs are not in score.candidates"),
        ({("ann", 2): None}, {"short_lists": 1}, "1 lists are shorter than the items that were left"),
    ],
)
def test_a_fault_is_counted_and_named(
    spark: SparkSession, changes: dict[Any, Any], counts: dict[str, int], told: str
) -> None:
    found = counted(spark, rows(changes))
    assert {name: found[name] for name in counts} == counts
    faults = judged(found, RULES)
    assert len(faults) == len(counts)
    assert any(fault.startswith(told) for fault in faults)


def test_two_rows_of_one_rank_leave_a_gap(spark: SparkSession) -> None:
    found = counted(spark, [*rows({("ann", 2): None}), ("ann", 1, "d", 0.5)])
    assert found["rank_gaps"] == 1


def test_coverage_below_the_share_is_told(spark: SparkSession) -> None:
    found = counted(spark, rows())
    assert judged(found, ScoreConfig(min_coverage=0.8)) == [
        "3 of 4 users have a list, expected one at least and a share of at least score.min_coverage = 0.8"
    ]


def test_refused_items_above_the_share_are_told(spark: SparkSession) -> None:
    counts = dict.fromkeys(audit_names(), 0) | {"users": 1, "users_listed": 1}
    assert audit.faults(counts, RULES, n_items=5, n_rejected_items=1) == []
    assert audit.faults(counts, RULES, n_items=4, n_rejected_items=1) == [
        "1 of 4 items were refused, expected a share of at most score.max_reject_share = 0.2"
    ]


def audit_names() -> list[str]:
    zeros = "users_lost users_unknown rank_gaps repeated_items bad_scores disorders excluded_listed unlistable_listed"
    return [*zeros.split(), "not_candidates", "short_lists"]


@pytest.mark.parametrize("min_coverage", [0.0, 0.5])
def test_without_users_nothing_is_published(spark: SparkSession, min_coverage: float) -> None:
    faults = judged(counted(spark, [], prompts=[]), ScoreConfig(min_coverage=min_coverage))
    assert faults == [
        f"0 of 0 users have a list, expected one at least and a share of at least score.min_coverage = {min_coverage}"
    ]


def test_every_fault_at_once_is_told_at_once(spark: SparkSession) -> None:
    broken = counted(spark, rows({("full", 0): None, ("eve", 1): ("a", NAN), ("ann", 2): None}))
    assert len(judged(broken, ScoreConfig(min_coverage=1.0))) == 5


@pytest.mark.parametrize(
    ("kind", "values", "separator"),
    [
        ("string", ["x|y", "x | z", "|", " y ", None, "", "x||x"], "|"),
        ("string", ["a.b", "a.b", "a", " a.b"], None),
        ("string", ["Action Sci-Fi", "Sci-Fi", "Action", "  Action  "], " "),
        ("string", ["a\\Eb", "a\\Ec", "b"], "\\E"),
        ("array<string>", [["a", "b"], ["b", None, " b"], [], None, ["a"]], ","),
        ("int", [1995, 1995, None, 1996], None),
        ("double", [1.5, NAN, NAN, NAN, 1.5, None], None),
        ("boolean", [True, True, False, None], None),
    ],
)
@pytest.mark.parametrize("most", [1, 2])
def test_lists_over_a_cap_are_counted_by_the_rule_that_chose_them(
    spark: SparkSession, kind: str, values: list[Any], separator: str | None, most: int
) -> None:
    """Lists of two to four items of the values, which are the items."""
    separators = {} if separator is None else {"kind of": separator}
    config = DiversityConfig(caps={"kind of": most}, separators=separators)
    every = [list(part) for size in (2, 3, 4) for part in itertools.combinations(range(len(values)), size)]
    full = [
        (f"u{user}", rank, str(item), 0.5, 0.5, True, 0, None)
        for user, part in enumerate(every)
        for rank, item in enumerate(part, 1)
    ]
    items = spark.createDataFrame(list(enumerate(values)), f"item_id int, `kind of` {kind}")
    items = items.withColumn("item_id", items.item_id.cast("string")).coalesce(1)
    top_n = spark.createDataFrame([*full, ("none", 0, None, None, None, True, 0, "why")], scores.OUTPUT).coalesce(1)
    (frame,) = audit.cap_counts(top_n, items, config)
    held = [Counter(value for item in part for value in values_of(values[item], separator)) for part in every]
    expected = sum(max(own.values(), default=0) > most for own in held)
    assert frame.collect()[0].asDict() == {"over_cap_kind of": expected}


def test_lists_over_a_cap_are_a_fault_and_short_ones_are_none_then() -> None:
    counts = dict.fromkeys([*audit_names(), "over_cap_genre"], 0) | {"users": 1, "users_listed": 1, "short_lists": 3}
    rules = ScoreConfig(min_coverage=0.75, max_reject_share=0.2, diversity=DiversityConfig(caps={"genre": 4}))
    assert judged(counts, rules) == []
    assert judged(counts | {"over_cap_genre": 7}, rules) == ["7 lists hold more than 4 items of one genre"]
    assert judged(counts, RULES) == ["3 lists are shorter than the items that were left"]
