"""What is made of the answers, by hand: values, differences, intervals, and what cannot be measured."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flmrec_spark import metrics
from flmrec_spark.bootstrap import interval, mean_over_users, resamples
from flmrec_spark.stages.measurements import Answers, Measurement, measure, pairs
from flmrec_spark.stages.segments import ALL, COLD, COLD_ITEMS, COLD_USERS, HEAD, TAIL, WARM_ITEMS, HeldOut, segments

Found = dict[tuple[str, str, int, str], Measurement]
WORLD = HeldOut(  # users 0 and 1 have history; user 2 none, and one label only
    users=np.array([0, 0, 1, 1, 2]),
    labels=np.array([True, False, True, False, True]),
    kinds=np.array([COLD, HEAD, HEAD, TAIL, COLD]),
    relevant=np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0]]),
    n_history=np.array([3, 30, 0]),
)
HITS = np.array([[COLD + 1, 0], [0, HEAD + 1], [0, 0]])


def measured(*, n_resamples: int = 0, against: str = "popularity") -> Found:
    flm = np.array([0.9, 0.4, 0.3, 0.8, 0.6])
    counts = np.array([5.0, 5.0, 5.0, 5.0, 1.0])
    diversity = {("diversity", 2): np.array([0.25, 0.75, math.nan])}
    answers = [
        Answers("flm", flm, flm, HITS, diversity, {("coverage", 1): 2 / 4, ("coverage", 2): 3 / 4}),
        Answers("popularity", counts, None, np.zeros((3, 2), dtype=int), {}, {("coverage", 1): 0.0}),
        Answers("user_mean", flm[::-1], flm[::-1], None, {}, {}),
    ]
    found = measure(
        WORLD,
        answers,
        cutoffs=[1, 2],
        compared=pairs([answer.model for answer in answers], against),
        n_resamples=n_resamples,
        seed=1,
    )
    keyed = {(row.model, row.metric, row.k, row.segment): row for row in found}
    assert len(keyed) == len(found)
    return keyed


def test_measurements_by_hand() -> None:
    found = measured()
    # liked .9 beats .4 and .8; liked .3 beats none; liked .6 beats .4
    assert found["flm", "auc", 0, ALL].value == pytest.approx((2 + 0 + 1) / 6)
    assert found["flm", "uauc", 0, ALL].value == pytest.approx((1 + 0) / 2)
    assert found["flm", "accuracy", 0, ALL].value == pytest.approx(3 / 5)
    assert found["flm", "recall", 2, ALL].value == pytest.approx((1 / 1 + 1 / 2) / 2)
    assert found["flm", "mrr", 2, ALL].value == pytest.approx((1 + 1 / 2) / 2)
    assert found["flm", "diversity", 2, ALL].value == (0.25 + 0.75) / 2
    assert found["flm", "coverage", 2, ALL].value == 3 / 4
    assert found["popularity", "coverage", 1, ALL].value == 0
    assert found["popularity", "auc", 0, ALL].value == pytest.approx((2 * 0.5 * 2) / 6)  # two fives tie two
    # bin 9 holds .9 and .8 after it: liked 1 of each
    assert found["flm", "calibration_liked", 10, ALL].value == 1
    assert found["flm", "calibration_rows", 9, ALL].value == 1 / 5


def test_of_a_segment_of_items_only_its_rows_and_hits_count() -> None:
    found = measured()
    # cold items: liked .9 and .6, none disliked; user 0's one relevant item, at rank 1
    assert found["flm", "auc", 0, COLD_ITEMS].value is None
    assert found["flm", "recall", 1, COLD_ITEMS].value == 1
    assert found["flm", "recall", 1, COLD_ITEMS].n_users == 1
    # warm items: disliked .4, liked .3, disliked .8; user 1's two relevant items, one at rank 2
    assert found["flm", "auc", 0, WARM_ITEMS].value == 0
    assert found["flm", "recall", 2, WARM_ITEMS].value == 1 / 2
    assert found["flm", "precision", 2, "tail items"].value == (1 / 2 + 0) / 2
    assert found["flm", "precision", 2, "history 20-99"].value == 1 / 2
    assert ("flm", "diversity", 2, WARM_ITEMS) not in found  # a list is not of a segment of items
    assert found["flm", "diversity", 2, "history 1-4"].value == 0.25


def test_users_are_counted_by_what_the_metric_needs() -> None:
    found = measured()
    assert found["flm", "auc", 0, ALL].n_users == 3
    assert found["flm", "uauc", 0, ALL].n_users == 2
    assert found["flm", "ndcg", 1, ALL].n_users == 2
    assert found["flm", "diversity", 2, ALL].n_users == 2
    assert found["flm", "ndcg", 1, COLD_USERS].n_users == 0


def test_what_a_model_or_segment_cannot_answer_is_null() -> None:
    found = measured(n_resamples=10)
    nothing = [
        ("popularity", "log_loss", 0, ALL),
        ("popularity", "diversity", 2, ALL),
        ("user_mean", "ndcg", 1, ALL),
        ("user_mean", "coverage", 1, ALL),
        ("flm - popularity", "accuracy", 0, ALL),
        ("flm", "auc", 0, COLD_USERS),
        ("flm", "auc", 0, "history 100+"),
        ("flm - popularity", "ndcg", 1, "cold users, warm items"),
    ]
    for key in nothing:
        assert (found[key].value, found[key].low, found[key].high) == (None, None, None), key


def test_the_first_is_compared_with_each_other_and_those_with_the_named_one() -> None:
    assert pairs(["flm", "a", "b", "c"], "b") == [("flm", "a"), ("flm", "b"), ("flm", "c"), ("a", "b"), ("c", "b")]
    assert pairs(["flm", "a"], "flm") == [("flm", "a")]
    found = measured(against="user_mean")
    theirs = [found[model, "auc", 0, ALL].value for model in ("popularity", "user_mean")]
    assert found["popularity - user_mean", "auc", 0, ALL].value == pytest.approx(theirs[0] - theirs[1])
    assert not any("calibration_liked" in key and " - " in key[0] for key in found)


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


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_a_segment_is_measured_as_if_it_were_the_world(seed: int) -> None:
    """Every segment's values against plain calls on its own rows and lists, and its intervals on its own users."""
    random = np.random.default_rng(seed)
    n_users, n_rows = 12, 60
    users, kinds = random.integers(0, n_users, n_rows), random.integers(0, 3, n_rows)
    labels, scores = random.random(n_rows) < 0.5, random.integers(1, 9, n_rows) / 10
    hits = random.integers(0, 4, (n_users, 3)) * (random.random((n_users, 3)) < 0.5)
    relevant = np.stack([(hits == kind + 1).sum(axis=1) for kind in range(3)], axis=1) + random.integers(0, 2, 3)
    world = HeldOut(users, labels, kinds, relevant, random.integers(0, 130, n_users))
    rows = measure(
        world, [Answers("m", scores, scores, hits, {}, {})], cutoffs=[2], compared=[], n_resamples=20, seed=3
    )
    found = {(row.metric, row.segment): row for row in rows}
    drawn = resamples(n_users, n=20, seed=3)
    for segment in segments(world):
        own = [row for row in range(n_rows) if segment.users[users[row]] and kinds[row] in segment.kinds]
        auc = metrics.auc(labels[own], scores[own])
        uauc = metrics.uauc(users[own], labels[own], scores[own])
        is_hit = np.isin(hits, [kind + 1 for kind in segment.kinds])
        n_relevant = relevant[:, list(segment.kinds)].sum(axis=1)
        each = np.where(segment.users, metrics.ndcg(is_hit, n_relevant, k=2), np.nan)
        ndcg = float(np.nanmean(each)) if (~np.isnan(each)).any() else math.nan
        for name, expected in (("auc", auc), ("uauc", uauc), ("ndcg", ndcg)):
            value = found[name, segment.name].value
            assert (math.nan if value is None else value) == pytest.approx(expected, nan_ok=True), (name, segment.name)
        row = found["ndcg", segment.name]
        if row.n_users > 1 and row.low is not None:
            assert (row.low, row.high) == pytest.approx(interval(mean_over_users(each)(drawn)))


def test_lists_chosen_anew_have_no_scores_and_nothing_beyond_their_length() -> None:
    scores = np.array([0.9, 0.4, 0.3, 0.8, 0.6])
    answers = [
        Answers("flm", scores, scores, HITS, {}, {("coverage", 1): 2 / 4, ("coverage", 2): 3 / 4}),
        Answers("flm_diverse", None, None, HITS[:, :1], {}, {("coverage", 1): 3 / 4}),
    ]
    pair = ("flm_diverse", "flm")
    measured_rows = measure(WORLD, answers, cutoffs=[1, 2], compared=[pair], n_resamples=20, seed=1)
    found = {(row.model, row.metric, row.k, row.segment): row for row in measured_rows}
    for metric, k in (("auc", 0), ("log_loss", 0), ("ndcg", 2), ("coverage", 2)):
        assert found["flm", metric, k, ALL].value is not None
        assert found["flm_diverse", metric, k, ALL].value is None
        assert ("flm_diverse - flm", metric, k, ALL) not in found or not found[
            "flm_diverse - flm", metric, k, ALL
        ].value
    assert found["flm_diverse", "ndcg", 1, ALL].value == found["flm", "ndcg", 1, ALL].value
    assert found["flm_diverse - flm", "ndcg", 1, ALL].value == found["flm_diverse - flm", "ndcg", 1, ALL].low == 0
    assert found["flm_diverse", "ndcg", 1, COLD_ITEMS].value == found["flm", "ndcg", 1, COLD_ITEMS].value
