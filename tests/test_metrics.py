"""Metrics against sklearn on random rows with ties, and against small worlds worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from flmrec_spark import metrics
from flmrec_spark.errors import InputError

Rows = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]
unhurried = settings(max_examples=60, deadline=None)  # the first call of sklearn is slow


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    """Up to 40 rows of up to 5 users; few distinct probabilities, so that many are tied."""
    n = draw(st.integers(2, 40))
    users = draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    labels = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    twentieths = draw(st.lists(st.integers(1, 19), min_size=n, max_size=n))
    return np.array(users), np.array(labels), np.array(twentieths) / 20


def of_user(user: int, world: Rows) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    users, labels, scores = world
    return labels[users == user], scores[users == user]


def both(labels: npt.NDArray[Any]) -> bool:
    return 0 < labels.sum() < len(labels)


@unhurried
@given(rows())
def test_auc_is_sklearns_with_ties(world: Rows) -> None:
    _, labels, scores = world
    expected = sk.roc_auc_score(labels, scores) if both(labels) else math.nan
    assert metrics.auc(labels, scores) == pytest.approx(expected, nan_ok=True)


@unhurried
@given(rows())
def test_uauc_is_the_mean_of_sklearns_auc_over_users_with_both_labels(world: Rows) -> None:
    each = [of_user(user, world) for user in range(5)]
    areas = [sk.roc_auc_score(labels, scores) for labels, scores in each if both(labels)]
    assert metrics.uauc(*world) == pytest.approx(np.mean(areas) if areas else math.nan, nan_ok=True)


@unhurried
@given(rows(), st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_a_weighted_metric_is_sklearns_with_the_rows_of_a_user_repeated(world: Rows, weights: list[int]) -> None:
    users, labels, scores = world
    drawn = np.array(weights)[users]
    found = metrics.pointwise(users, labels, scores, probabilities=scores, n_users=5)
    got = {name: statistic(np.array([weights], dtype=float))[0] for name, statistic in found.items()}
    labels, scores = np.repeat(labels, drawn), np.repeat(scores, drawn)
    if not both(labels):
        return
    predicted = scores >= 0.5
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        labels, predicted, average="binary", zero_division=np.nan
    )
    assert got["auc"] == pytest.approx(sk.roc_auc_score(labels, scores))
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert (got["precision"], got["recall"], got["f1"]) == pytest.approx((precision, recall, f1), nan_ok=True)
    assert got["log_loss"] == pytest.approx(sk.log_loss(labels, scores))
    assert got["brier"] == pytest.approx(sk.brier_score_loss(labels, scores))


@unhurried
@given(rows())
def test_log_loss_is_sklearns(world: Rows) -> None:
    _, labels, scores = world
    assert metrics.log_loss(labels, scores) == pytest.approx(sk.log_loss(labels, scores, labels=[False, True]))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_certain_and_wrong_probability_costs_a_finite_log_loss(kind: type[np.floating[Any]]) -> None:
    labels, probabilities = np.array([True, False]), np.array([0.0, 0.0], dtype=kind)
    assert metrics.log_loss(labels, probabilities) == pytest.approx(-math.log(np.finfo(kind).eps) / 2)


@unhurried
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 12))
def test_ndcg_is_sklearns_on_rows_without_ties(seed: int, n: int, k: int) -> None:
    random = np.random.default_rng(seed)
    labels, scores = random.random(n) < 0.4, random.permutation(n) / n
    expected = sk.ndcg_score([labels], [scores], k=k, ignore_ties=True) if labels.any() else math.nan
    assert metrics.ndcg_at_k(np.zeros(n), labels, scores, k=k) == pytest.approx(expected, nan_ok=True)


@unhurried
@given(st.integers(0, 2**32 - 1), st.integers(2, 30))
def test_average_precision_of_a_complete_list_is_sklearns(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.random(n) < 0.4
    labels[0] = True
    ranked = np.sort(random.permutation(n))[::-1]  # scores of ranks 1 .. n
    got = metrics.average_precision(labels[None], np.array([labels.sum()]), k=n)[0]
    assert got == pytest.approx(sk.average_precision_score(labels, ranked))


def test_auc_counts_a_tie_as_half() -> None:
    # liked .7 beats .5 and .2; liked .5 ties .5 and beats .2
    assert metrics.auc(np.array([1, 1, 0, 0]), np.array([0.7, 0.5, 0.5, 0.2])) == (1 + 1 + 0.5 + 1) / 4


def test_uauc_leaves_out_users_with_one_label_and_takes_users_of_any_kind() -> None:
    users = np.array(["a", "a", "007", "007", "only liked"])
    labels, scores = np.array([1, 0, 1, 0, 1]), np.array([0.9, 0.1, 0.4, 0.4, 0.0])
    assert metrics.uauc(users, labels, scores) == (1 + 0.5) / 2


def test_metrics_without_an_answer_are_nan() -> None:
    none, one = np.array([]), np.array([1.0])
    assert math.isnan(metrics.auc(none, none))
    assert math.isnan(metrics.auc(one, one))
    assert math.isnan(metrics.uauc(none, none, none))
    assert math.isnan(metrics.uauc(one, one, one))
    assert math.isnan(metrics.log_loss(none, none))
    assert math.isnan(metrics.calibration_error(none, none))
    assert math.isnan(metrics.ndcg_at_k(one, np.array([0.0]), one, k=3))


def test_ndcg_of_rows_ranks_each_user_apart_and_puts_disliked_rows_of_a_tie_first() -> None:
    users = np.array([1, 1, 1, 2, 2])
    labels = np.array([1, 0, 1, 1, 0])
    scores = np.array([0.9, 0.8, 0.1, 0.5, 0.5])
    first = (1 / math.log2(2)) / (1 / math.log2(2) + 1 / math.log2(3))  # hit at rank 1 of 2, ideal 2 hits
    second = (1 / math.log2(3)) / (1 / math.log2(2))  # tied: rank 2
    assert metrics.ndcg_at_k(users, labels, scores, k=2) == pytest.approx((first + second) / 2)


def test_calibration_error_by_hand() -> None:
    labels = np.array([1, 0, 1, 1])
    probabilities = np.array([0.22, 0.28, 0.9, 1.0])
    # bin [.2, .3): mean label 1/2 against .25; last bin: 1 against .95; each holds half of the rows
    assert metrics.calibration_error(labels, probabilities) == pytest.approx(0.5 * 0.25 + 0.5 * 0.05)


@unhurried
@given(rows())
def test_the_calibration_curve_is_sklearns_and_its_gaps_are_the_calibration_error(world: Rows) -> None:
    users, labels, scores = world
    curve = metrics.calibration_curve(users, labels, scores, n_users=5)
    assert {name for name, _ in curve} == set(metrics.CALIBRATION)
    got = {key: statistic(np.ones((1, 5)))[0] for key, statistic in curve.items()}
    predicted, liked, share = ([got[name, number] for number in range(1, 11)] for name in metrics.CALIBRATION)
    full = [place for place in range(10) if share[place] > 0]
    # sklearn closes its bins on the right; just below its edges, ours open on the right are the same
    mean_liked, mean_predicted = calibration_curve(labels, np.minimum(scores + 1e-12, 1), n_bins=10)
    assert [predicted[place] for place in full] == pytest.approx(list(mean_predicted))
    assert [liked[place] for place in full] == pytest.approx(list(mean_liked))
    error = sum(share[place] * abs(predicted[place] - liked[place]) for place in full)
    assert metrics.calibration_error(labels, scores) == pytest.approx(error)
    assert sum(share) == pytest.approx(1)


HITS = np.array(
    [
        [False, True, True],  # 4 relevant
        [True, False, False],  # 1 relevant
        [False, False, False],  # 2 relevant, no list
        [False, False, False],  # nothing relevant
    ]
)
RELEVANT = np.array([4, 1, 2, 0])


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("precision", [2 / 3, 1 / 3, 0]),
        ("recall", [2 / 4, 1 / 1, 0]),
        ("hit_rate", [1, 1, 0]),
        ("mrr", [1 / 2, 1, 0]),
        ("map", [(1 / 2 + 2 / 3) / min(3, 4), 1, 0]),
        ("ndcg", [(1 / math.log2(3) + 1 / 2) / (1 + 1 / math.log2(3) + 1 / 2), 1, 0]),
    ],
)
def test_list_metrics_by_hand(metric: str, expected: list[float]) -> None:
    got = metrics.LIST_METRICS[metric](HITS, RELEVANT, k=3)
    assert got.tolist() == pytest.approx([*expected, math.nan], nan_ok=True)


def test_a_cut_off_hides_later_hits_and_a_short_list_still_counts_k() -> None:
    cut = {name: metric(HITS, RELEVANT, k=1)[0] for name, metric in metrics.LIST_METRICS.items()}
    assert set(cut.values()) == {0.0}
    longer = {name: metric(HITS, RELEVANT, k=5)[0] for name, metric in metrics.LIST_METRICS.items()}
    assert longer["precision"] == 2 / 5
    assert longer["map"] == pytest.approx((1 / 2 + 2 / 3) / 4)
    assert longer["mrr"] == 1 / 2


def test_lists_of_nobody_count_as_zero() -> None:
    empty = np.zeros((2, 0), dtype=bool)
    for metric in metrics.LIST_METRICS.values():
        assert metric(empty, np.array([1, 0]), k=5).tolist() == pytest.approx([0.0, math.nan], nan_ok=True)


def test_a_baseline_without_probabilities_has_rank_metrics_only() -> None:
    users, labels, counts = np.array([0, 0]), np.array([1, 0]), np.array([70.0, 3.0])
    assert set(metrics.pointwise(users, labels, counts, probabilities=None, n_users=1)) == {"auc", "uauc"}


def test_every_pointwise_metric_has_a_name_in_the_list() -> None:
    users, labels, scores = np.array([0, 0]), np.array([1, 0]), np.array([0.7, 0.3])
    assert set(metrics.pointwise(users, labels, scores, probabilities=scores, n_users=1)) == set(metrics.POINTWISE)


def test_a_score_that_is_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match="1 of 2 scores are not finite"):
        metrics.auc(np.array([1, 0]), np.array([0.5, np.nan]))


def test_a_probability_outside_its_range_is_refused() -> None:
    with pytest.raises(InputError, match=r"1 of 2 probabilities are outside \[0, 1\]"):
        metrics.calibration_error(np.array([1, 0]), np.array([0.5, 1.5]))


def test_labels_and_scores_of_different_length_are_refused() -> None:
    with pytest.raises(InputError, match="got 2 labels and 1 scores, expected as many"):
        metrics.log_loss(np.array([1, 0]), np.array([0.5]))
