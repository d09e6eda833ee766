"""The leak test: examples against a plain Python reference, on users with ties, repeats and rows in any order."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import UTC, datetime
from itertools import product
from typing import Any, NamedTuple, get_args

import pytest
from pyspark.sql import SparkSession

from flmrec_spark import columns as c
from flmrec_spark.config import SplitConfig
from flmrec_spark.stages.examples import build_examples
from flmrec_spark.stages.splits import with_moments, with_splits
from flmrec_spark.tables import schemas

ALLOWED = {c.TRAIN: {c.TRAIN}, c.VALID: {c.TRAIN}, c.TEST: {c.TRAIN, c.VALID}}
# By these a user's valid rows all follow the train rows, and the test rows those (with cold_users there is one split).
FORWARD = ("user_time", "global_time", "leave_last_out", "cold_users")
KINDS = get_args(SplitConfig.model_fields["by"].annotation)
SCHEMA = "user_id string, item_id string, timestamp timestamp, value double, is_liked boolean, split string"


class Row(NamedTuple):
    user: str
    item: str
    time: int
    value: float
    is_liked: bool
    split: str

    @property
    def entry(self) -> tuple[str, bool, float]:
        return self.item, self.is_liked, self.value


def adversarial_rows() -> list[Row]:
    """400 users of 1 to 60 rows at few times, items met again and again, no value twice, in no order."""
    draw = random.Random(11)
    rows = []
    for number in range(400):
        times = draw.choice([1, 2, 5, 40])
        seen = {(draw.choice("aàb中Z 0"), draw.randrange(times)) for _ in range(draw.randrange(1, 60))}
        for item, time in seen:
            split = draw.choice(c.SPLITS)
            rows.append(Row(f"u{number}", item, time, len(rows) + 0.5, draw.random() < 0.5, split))
    draw.shuffle(rows)
    return rows


def expected_history(mine: list[Row], split: str, time: int, length: int) -> list[tuple[str, bool, float]]:
    shown = [row for row in mine if row.split in ALLOWED[split] and row.time < time]
    return [row.entry for row in sorted(shown, key=lambda row: (-row.time, row.item))][:length]


def made(spark: SparkSession, rows: list[Row], by: str, *, length: int, size: int) -> tuple[list[Row], list[Any]]:
    """The rows with the splits that they got, and the examples."""
    data = [(r.user, r.item, datetime.fromtimestamp(r.time, UTC), r.value, r.is_liked, r.split) for r in rows]
    shares = {"valid_share": 0.0 if by == "column" else 0.2, "test_share": 0.2}  # a column alone says what is valid
    config = SplitConfig(by=by, **shares)  # type: ignore[arg-type]
    interactions = with_splits(with_moments(spark.createDataFrame(data, SCHEMA), seed=1), config)
    examples = build_examples(interactions, history_length=length, targets_per_example=size)
    splits = {row.value: row.split for row in interactions.select("value", "split").collect()}
    return [row._replace(split=splits[row.value]) for row in rows], schemas.EXAMPLES.select(examples).collect()


def tuples(entries: Any) -> list[tuple[str, bool, float]]:
    return [(entry.item_id, entry.is_liked, entry.value) for entry in entries]


@pytest.mark.parametrize("by", KINDS)
def test_a_history_lies_before_the_moment_and_is_all_of_it_where_held_out_rows_interleave(
    spark: SparkSession, by: str
) -> None:
    rows, examples = made(spark, adversarial_rows(), by, length=5, size=4)
    by_value = {row.value: row for row in rows}
    by_user = defaultdict(list)
    for row in rows:
        by_user[row.user].append(row)
    asked, n_interleaved = defaultdict(list), 0
    for example in examples:
        targets = [by_value[value] for _, _, value in tuples(example.targets)]
        mine, time = by_user[example.user_id], min(row.time for row in targets)
        shown = [row.time for row in mine if row.split in ALLOWED[example.split]]
        interleaves = example.split != c.TRAIN and max(shown, default=0) > time
        is_one_moment = example.split != c.TRAIN and bool(shown) and min(shown) == time
        assert not (interleaves and by in FORWARD)
        time = max(shown) + 1 if interleaves or is_one_moment else time
        n_interleaved += interleaves
        assert {(row.user, row.split) for row in targets} == {(example.user_id, example.split)}
        assert tuples(example.targets) == [row.entry for row in sorted(targets, key=lambda row: (row.time, row.item))]
        assert all(by_value[value].time < time for _, _, value in tuples(example.history))
        assert all(by_value[value].split in ALLOWED[example.split] for _, _, value in tuples(example.history))
        assert tuples(example.history) == expected_history(mine, example.split, time, 5)
        assert example.moment == len({row.time for row in mine if row.time < time}) + 1
        asked[example.split] += targets
    for split in c.SPLITS:
        assert sorted(asked[split]) == sorted(row for row in rows if row.split == split)
    keys = [(example.user_id, example.split, example.moment) for example in examples]
    assert len(set(keys)) == len(keys)
    held_out = [(user, split) for user, split, _ in keys if split != c.TRAIN]
    assert len(set(held_out)) == len(held_out)
    assert (n_interleaved > 0) == (by not in FORWARD)


def test_rows_without_times_are_ordered_by_the_split_that_they_came_with(spark: SparkSession) -> None:
    rows = enumerate(product(c.SPLITS, "abc"))
    data = [("u", item, None, number + 0.5, True, split) for number, (split, item) in rows]
    interactions = with_moments(spark.createDataFrame(data, SCHEMA), seed=1)
    moments = {split: sorted(row.moment for row in interactions.collect() if row.split == split) for split in c.SPLITS}
    assert moments == {c.TRAIN: [1, 2, 3], c.VALID: [4, 5, 6], c.TEST: [7, 8, 9]}
    examples = build_examples(interactions, history_length=9, targets_per_example=9).collect()
    found = {row.split: (row.moment, sorted(entry.item_id for entry in row.history)) for row in examples}
    assert found == {c.TRAIN: (1, []), c.VALID: (4, ["a", "b", "c"]), c.TEST: (7, ["a", "a", "b", "b", "c", "c"])}


def test_train_rows_are_asked_about_in_chunks_that_no_moment_straddles(spark: SparkSession) -> None:
    times = [1, 2, 3, 3, 3, 3, 4, 5, 6]
    rows = [Row("u", f"i{place}", time, place + 0.5, True, c.TRAIN) for place, time in enumerate(times)]
    _, examples = made(spark, rows, "column", length=3, size=3)
    found = {row.moment: ([t.item_id for t in row.targets], [h.item_id for h in row.history]) for row in examples}
    assert found == {
        1: (["i0", "i1", "i2", "i3", "i4", "i5"], []),
        4: (["i6", "i7", "i8"], ["i2", "i3", "i4"]),
    }


def test_a_user_without_train_rows_is_asked_with_an_empty_history(spark: SparkSession) -> None:
    rows = [Row("u", "i", 1, 0.5, True, c.TEST), Row("v", "i", 1, 1.5, True, c.VALID)]
    _, examples = made(spark, rows, "column", length=3, size=3)
    assert [(row.user_id, row.history, len(row.targets)) for row in sorted(examples)] == [("u", [], 1), ("v", [], 1)]
