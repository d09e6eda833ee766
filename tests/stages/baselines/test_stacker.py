"""A stack against scikit-learn's own pipeline."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from flmrec_spark import metrics
from flmrec_spark.errors import InputError
from flmrec_spark.stages.baselines import stacker
from flmrec_spark.stages.baselines.stacker import Lists, Stacker

RANDOM = np.random.default_rng(1)
FEATURES = RANDOM.normal(size=(300, 3)) * [1.0, 20.0, 0.1] + [0.0, 5.0, -1.0]
LABELS = RANDOM.random(300) < 1 / (1 + np.exp(-FEATURES[:, 0] - 0.05 * FEATURES[:, 1]))


def test_a_stack_is_a_logistic_regression_on_standardised_scores() -> None:
    oracle = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(FEATURES, LABELS)
    found = stacker.fit(FEATURES, LABELS).probability(FEATURES)
    assert found == pytest.approx(oracle.predict_proba(FEATURES)[:, 1], abs=1e-6)


def test_a_part_that_knows_nothing_says_the_mean() -> None:
    fitted = stacker.fit(FEATURES, LABELS)
    asked = FEATURES[:4].copy()
    asked[:, 1] = np.nan
    means = FEATURES[:4].copy()
    means[:, 1] = FEATURES[:, 1].mean()
    assert fitted.probability(asked) == pytest.approx(fitted.probability(means))


def test_a_part_that_is_constant_or_never_known_weighs_nothing() -> None:
    constant, unknown = np.full((300, 1), 7.0), np.full((300, 1), np.nan)
    fitted = stacker.fit(np.hstack([FEATURES, constant, unknown]), LABELS)
    assert fitted.weights[3:] == pytest.approx([0.0, 0.0])
    assert fitted.weights[:3] == pytest.approx(stacker.fit(FEATURES, LABELS).weights, abs=1e-4)


def test_one_label_is_refused() -> None:
    with pytest.raises(InputError, match="hybrid: got 300 rows of one label"):
        stacker.fit(FEATURES, np.ones(300, dtype=bool))


def test_every_user_weighs_the_same_on_both_sides() -> None:
    users, labels = np.array([0, 0, 0, 1, 1]), np.array([True, False, False, True, False])
    assert stacker.even_weights(users, labels).tolist() == [1.0, 0.5, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("constant", [0.1, -0.2518115, 1e6])
def test_a_part_that_is_constant_up_to_its_rounding_weighs_nothing_when_it_is_another_constant_later(
    constant: float,
) -> None:
    """As an item mean of items that nobody has met: it moves with the mean of all, from fit to use."""
    random = np.random.default_rng(3)
    labels = random.random(500) < 0.5
    told = labels + random.normal(size=500)
    nearly = np.full(500, constant) * (1 + np.finfo(float).eps * random.integers(-2, 3, 500))
    found = stacker.fit(np.column_stack([told, nearly]), labels)
    alone = stacker.fit(told[:, None], labels).probability(told[:, None])
    later = found.probability(np.column_stack([told, np.full(500, constant + 0.3)]))
    np.testing.assert_allclose(later, alone, atol=1e-6)


@given(st.data())
def test_the_ndcg_of_lists_is_that_of_the_metric_with_ties_too(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 60))
    users = np.array(data.draw(st.lists(st.sampled_from([3, 5, 8]), min_size=n, max_size=n)))
    relevant = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    scores = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=n, max_size=n)))
    expected = metrics.ndcg_at_k(users, relevant, scores, k=10)
    stack = Stacker(np.zeros(1), np.ones(1), np.ones(1), 0.0)
    found = Lists.of(scores[:, None], relevant, users)
    assert found.ndcg(stack) == pytest.approx(expected, nan_ok=True)


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What 80 users may like next (of 60 items each), the likelier by the first part; the second knows all but that."""
    random = np.random.default_rng(seed)
    value = random.normal(size=80 * 60)
    relevant = random.random(len(value)) < 1 / (1 + np.exp(2.0 - 3 * value))
    first = value + 0.5 * random.normal(size=len(value))
    second = np.where(value > 0.8, random.normal(scale=3.0, size=len(value)), 2.0 * value)
    return np.column_stack([first, second]), relevant, np.repeat(np.arange(80), 60)


def test_a_part_that_spoils_the_first_places_is_left_out_of_a_stack_of_lists() -> None:
    features, relevant, users = drawn(1)
    plain = stacker.fit(features, relevant, weights=stacker.even_weights(users, relevant))
    lists = Lists.of(features, relevant, users)
    found = stacker.fit_for_lists(features, relevant, users, lists)
    assert plain.weights[1] > 0.1 and found.weights[1] == 0.0
    alone = stacker.fit(features[:, :1], relevant, weights=stacker.even_weights(users, relevant))
    assert found.probability(features) == pytest.approx(alone.probability(features[:, :1]))
    assert lists.ndcg(found) > lists.ndcg(plain)
    unasked = stacker.fit_for_lists(features, relevant, users)
    assert unasked.weights == pytest.approx(plain.weights)
    unknown = np.column_stack([features, np.full(len(features), np.nan)])  # a part that knows nothing of anybody
    again = stacker.fit_for_lists(unknown, relevant, users, Lists.of(unknown, relevant, users))
    assert np.isfinite(again.probability(unknown)).all()


def test_where_every_part_counts_backwards_the_least_bad_one_orders_the_lists() -> None:
    random = np.random.default_rng(5)
    relevant = np.tile([True, False, False, False], 60)
    users = np.repeat(np.arange(60), 4)
    features = random.normal(size=(240, 2)) - relevant[:, None] * np.array([1.0, 0.5])
    found = stacker.fit_for_lists(features, relevant, users)
    assert found.weights.tolist() == [0.0, 1.0]
    assert found.probability(np.array([[0.0, 1.0]])) > found.probability(np.array([[0.0, 0.0]]))


def test_parts_that_lists_need_stay() -> None:
    random = np.random.default_rng(2)
    features = random.normal(size=(4800, 2))
    relevant = random.random(4800) < 1 / (1 + np.exp(2.0 - 1.5 * features.sum(1)))
    users = np.repeat(np.arange(80), 60)
    lists = Lists.of(features, relevant, users)
    found = stacker.fit_for_lists(features, relevant, users, lists)
    plain = stacker.fit(features, relevant, weights=stacker.even_weights(users, relevant))
    assert found.weights == pytest.approx(plain.weights) and found.intercept == plain.intercept
    with pytest.raises(InputError, match="of one label"):
        stacker.fit_for_lists(features, np.zeros(4800, dtype=bool), users, lists)


def test_lists_that_tell_nothing_leave_nothing_out_but_what_counts_backwards() -> None:
    random = np.random.default_rng(5)
    features = random.normal(size=(4800, 3))
    relevant = random.random(4800) < 1 / (1 + np.exp(2.0 - features @ [1.0, 0.7, -0.5]))
    users = np.repeat(np.arange(80), 60)
    forwards = stacker.fit(features[:, :2], relevant, weights=stacker.even_weights(users, relevant))
    empty = Lists.of(features, np.zeros(4800, dtype=bool), users)
    for lists in (None, empty):
        found = stacker.fit_for_lists(features, relevant, users, lists)
        assert found.weights == pytest.approx([*forwards.weights, 0.0])
