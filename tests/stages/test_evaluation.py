"""Which rows and users are measured (Spark), and what is made of the answers (numpy), by hand."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession

from flmrec_spark.stages import evaluation
from flmrec_spark.stages.evaluation import ALL, COLD_USERS, WARM_USERS, Answers, HeldOut, Measurement

INTERACTIONS = [
    ("ann", "a", 1, True, "train"),
    ("ann", "b", 2, True, "valid"),
    ("ann", "a", 3, True, "test"),  # again: asked pointwise, but no list can hold it
    ("ann", "c", 3, True, "test"),
    ("ann", "c", 4, True, "test"),  # twice held out
    ("ann", "d", 4, False, "test"),
    ("007", "b", 1, True, "test"),
    ("bob", "a", 1, True, "train"),
]


@pytest.fixture(scope="module")
def interactions(spark: SparkSession) -> DataFrame:
    columns = "user_id string, item_id string, moment int, is_liked boolean, split string"
    return spark.createDataFrame(INTERACTIONS, columns)


@pytest.fixture(scope="module")
def rows(interactions: DataFrame) -> DataFrame:
    users = evaluation.draw_users(interactions, split="test", max_users=9, seed=1)
    return evaluation.held_out(interactions, users, split="test", history_splits=("train", "valid"))


def test_held_out_rows_keep_repeats_and_know_what_was_seen(rows: DataFrame) -> None:
    assert sorted(tuple(row) for row in rows.collect()) == [
        ("007", "b", 1, True, False),
        ("ann", "a", 3, True, True),
        ("ann", "c", 3, True, False),
        ("ann", "c", 4, True, False),
        ("ann", "d", 4, False, False),
    ]


def test_users_are_drawn_by_seed(spark: SparkSession) -> None:
    users = [(f"u{i}", "test") for i in range(40)]
    frame = spark.createDataFrame([*users, *users, ("other", "train")], "user_id string, split string")

    def drawn(order: DataFrame, seed: int) -> list[str]:
        users = evaluation.draw_users(order, split="test", max_users=5, seed=seed)
        return sorted(row.user_id for row in users.collect())

    first = drawn(frame, 1)
    assert len(set(first)) == 5
    assert first == drawn(frame.repartition(3), 1)
    assert first != drawn(frame, 2)


def test_prompts_are_asked_about_held_out_items_and_relevant_are_new_liked_ones(
    spark: SparkSession, rows: DataFrame
) -> None:
    columns = "user_id string, history array<string>, excluded array<string>, candidates array<string>"
    prompts = spark.createDataFrame([("ann", ["b", "a"], ["a", "b"], None), ("007", [], [], None)], columns)
    asked = {row.user_id: row for row in evaluation.pointwise_prompts(prompts, rows).collect()}
    assert {user: sorted(row.candidates) for user, row in asked.items()} == {"ann": ["a", "c", "d"], "007": ["b"]}
    assert all(row.excluded == [] for row in asked.values())
    relevant = evaluation.relevant_items(rows)
    assert sorted(tuple(row) for row in relevant.collect()) == [("007", "b"), ("ann", "c")]
    users = evaluation.measured_users(prompts, relevant).collect()
    assert sorted(tuple(row) for row in users) == [("007", False, 1), ("ann", True, 1)]
    lists = spark.createDataFrame(
        [("flm", "ann", 1, "d"), ("flm", "ann", 2, "c"), ("flm", "007", 1, "d"), ("popularity", "007", 1, "b")],
        "model string, user_id string, rank int, item_id string",
    )
    assert sorted(tuple(row) for row in evaluation.hits(lists, relevant).collect()) == [
        ("flm", "ann", 2),
        ("popularity", "007", 1),
    ]
    listed = evaluation.listed(lists, [1, 2]).collect()
    assert sorted(tuple(row) for row in listed) == [("flm", 2, 1, 2), ("popularity", 1, 1, 1)]


def test_collected_rows_become_arrays_by_the_place_of_the_user() -> None:
    users = pa.table({"user_id": ["007", "ann", "é"], "has_history": [False, True, True], "n_relevant": [1, 0, 2]})
    rows = pa.table({"user_id": ["é", "007", "é"], "is_liked": [True, False, False]})
    world = evaluation.held_out_arrays(rows, users)
    assert world.users.tolist() == [2, 0, 2]
    assert world.labels.tolist() == [True, False, False]
    assert world.n_relevant.tolist() == [1, 0, 2]
    assert {name: mask.tolist() for name, mask in world.segments.items()} == {
        ALL: [True, True, True],
        WARM_USERS: [False, True, True],
        COLD_USERS: [True, False, False],
    }
    found = pa.table({"model": ["flm", "popularity"], "user_id": ["é", "007"], "rank": [2, 1]})
    assert evaluation.hit_matrix(found, users, model="flm", n=2).tolist() == [[0, 0], [0, 0], [0, 1]]
    assert not evaluation.hit_matrix(found, users, model="item_mean", n=2).any()


def measured(*, n_resamples: int) -> dict[tuple[str, str, int, str], Measurement]:
    """Three users: 0 and 1 with history; 2 without, with one label only."""
    everyone = np.array([True, True, True])
    world = HeldOut(
        users=np.array([0, 0, 1, 1, 2]),
        labels=np.array([True, False, True, False, True]),
        n_relevant=np.array([1, 2, 0]),
        segments={ALL: everyone, COLD_USERS: np.array([False, False, True]), "none": ~everyone},
    )
    flm = np.array([0.9, 0.4, 0.3, 0.8, 0.6])
    counts = np.array([5.0, 5.0, 5.0, 5.0, 1.0])
    hits = np.array([[True, False], [False, True], [False, False]])
    answers = [
        Answers("flm", flm, flm, hits, {1: 2, 2: 3}),
        Answers("popularity", counts, None, np.zeros((3, 2), dtype=bool), {}),
        Answers("user_mean", flm[::-1], flm[::-1], None, {}),
    ]
    found = evaluation.measure(world, answers, cutoffs=[1, 2], n_items=4, n_resamples=n_resamples, seed=1)
    keyed = {(row.model, row.metric, row.k, row.segment): row for row in found}
    assert len(keyed) == len(found)
    return keyed


def test_measurements_by_hand() -> None:
    found = measured(n_resamples=0)
    # liked .9 beats .4 and .8; liked .3 beats none; liked .6 beats .4
    assert found["flm", "auc", 0, ALL].value == pytest.approx((2 + 0 + 1) / 6)
    assert found["flm", "uauc", 0, ALL].value == pytest.approx((1 + 0) / 2)
    assert found["flm", "accuracy", 0, ALL].value == pytest.approx(3 / 5)
    assert found["flm", "recall", 2, ALL].value == pytest.approx((1 / 1 + 1 / 2) / 2)
    assert found["flm", "mrr", 2, ALL].value == pytest.approx((1 + 1 / 2) / 2)
    assert found["flm", "coverage", 2, ALL].value == 3 / 4
    assert found["popularity", "coverage", 2, ALL].value == 0
    assert found["popularity", "auc", 0, ALL].value == pytest.approx((2 * 0.5 * 2) / 6)  # two fives tie two


def test_users_are_counted_by_what_the_metric_needs() -> None:
    found = measured(n_resamples=0)
    assert found["flm", "auc", 0, ALL].n_users == 3
    assert found["flm", "uauc", 0, ALL].n_users == 2
    assert found["flm", "ndcg", 1, ALL].n_users == 2
    assert found["flm", "ndcg", 1, COLD_USERS].n_users == 0


def test_what_a_model_or_segment_cannot_answer_is_null() -> None:
    found = measured(n_resamples=10)
    nothing = [
        ("popularity", "log_loss", 0, ALL),
        ("user_mean", "ndcg", 1, ALL),
        ("user_mean", "coverage", 1, ALL),
        ("flm - popularity", "accuracy", 0, ALL),
        ("flm", "auc", 0, COLD_USERS),
        ("flm", "auc", 0, "none"),
    ]
    for key in nothing:
        assert (found[key].value, found[key].low, found[key].high) == (None, None, None), key


def test_differences_are_paired_and_intervals_hold_their_value() -> None:
    found = measured(n_resamples=200)
    ours, theirs = found["flm", "mrr", 2, ALL], found["popularity", "mrr", 2, ALL]
    paired = found["flm - popularity", "mrr", 2, ALL]
    assert ours.value is not None and theirs.value is not None
    assert paired.value == ours.value - theirs.value
    assert (paired.low, paired.high) == (ours.low, ours.high) == (0.5, 1.0)  # the other is 0 in every resample
    assert measured(n_resamples=200) == found


def test_one_user_has_a_value_and_no_interval() -> None:
    cold = measured(n_resamples=50)["flm", "log_loss", 0, COLD_USERS]
    assert cold.value == pytest.approx(-math.log(0.6))
    assert (cold.low, cold.high, cold.n_users) == (None, None, 1)
