"""A stack against scikit-learn's own pipeline."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from flmrec_spark.errors import InputError
from flmrec_spark.stages.baselines import stacker

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


def worlds(seed: int, *, n_users: int = 60, n_parts: int = 3) -> tuple[Any, Any, Any]:
    """Features, relevance and users of 2 to 30 items each, in no order; some users have nothing relevant."""
    random = np.random.default_rng(seed)
    users = random.permutation(np.repeat(np.arange(n_users) * 7, random.integers(2, 31, n_users)))
    features = random.normal(size=(len(users), n_parts)) * random.uniform(0.1, 20, n_parts) + 3
    told = features @ (random.uniform(0, 1, n_parts) / features.std(0))
    return features, random.random(len(users)) < 0.4 / (1 + np.exp(told.mean() - told)), users


@given(st.integers(0, 10**6))
@settings(max_examples=30)
def test_a_stack_of_lists_is_the_least_of_torchs_cross_entropy_and_its_ridge(seed: int) -> None:
    features, relevant, users = worlds(seed)
    found = stacker.fit_for_lists(features, relevant, users)
    asked = [user for user in np.unique(users) if relevant[users == user].any()]
    rows = np.isin(users, asked)
    assert found.center == pytest.approx(features[rows].mean(0))
    assert found.scale == pytest.approx(features[rows].std(0))
    weights = torch.tensor(found.weights, requires_grad=True)
    sums = torch.tensor((features - found.center) / found.scale) @ weights
    loss = stacker.RIDGE * len(asked) * weights @ weights
    for user in asked:
        own, target = sums[users == user], torch.tensor(relevant[users == user], dtype=torch.float64)
        loss = loss + torch.nn.functional.cross_entropy(own, target / target.sum())
    loss.backward()
    assert weights.grad is not None
    slope = weights.grad.numpy() / len(asked)
    assert (found.weights >= 0).all()
    assert slope[found.weights > 0] == pytest.approx(0.0, abs=2e-3)
    assert (slope[found.weights == 0] >= -2e-3).all()


def test_of_one_liked_and_one_other_item_it_is_a_logistic_regression_on_their_difference() -> None:
    random = np.random.default_rng(1)
    others = random.normal(size=(200, 2))
    liked = others + random.normal(size=(200, 2)) + [0.8, 0.3]
    features = np.stack([liked, others], axis=1).reshape(-1, 2)
    found = stacker.fit_for_lists(features, np.tile([True, False], 200), np.repeat(np.arange(200), 2))
    apart = (liked - others) / features.std(0)
    oracle = LogisticRegression(C=1 / (2 * stacker.RIDGE * 200), fit_intercept=False, tol=1e-9)
    oracle.fit(np.concatenate([apart, -apart]), np.repeat([1, 0], 200), sample_weight=np.full(400, 0.5))
    assert found.weights == pytest.approx(oracle.coef_[0], rel=1e-3)


@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
@settings(max_examples=20)
def test_neither_the_order_of_rows_nor_the_names_of_users_matter(seed: int, random: Random) -> None:
    features, relevant, users = worlds(seed, n_users=12)
    found = stacker.fit_for_lists(features, relevant, users)
    order = np.array(random.sample(range(len(users)), len(users)))
    again = stacker.fit_for_lists(features[order], relevant[order], 1000 - users[order])
    assert again.weights == pytest.approx(found.weights, abs=1e-4)
    assert again.intercept == pytest.approx(found.intercept, abs=1e-3)


def test_its_probabilities_are_at_even_odds() -> None:
    features, relevant, users = worlds(4)
    found = stacker.fit_for_lists(features, relevant, users)
    rows = np.isin(users, users[relevant])
    users, relevant, said = users[rows], relevant[rows], found.probability(features[rows])
    even = stacker.even_weights(np.unique(users, return_inverse=True)[1], relevant)
    assert even @ said == pytest.approx(even @ relevant)


def test_a_part_that_counts_backwards_weighs_nothing_and_a_useful_one_does() -> None:
    random = np.random.default_rng(5)
    relevant, users = np.tile([True, False, False, False], 60), np.repeat(np.arange(60), 4)
    features = random.normal(size=(240, 2)) + relevant[:, None] * np.array([1.0, -1.0])
    found = stacker.fit_for_lists(features, relevant, users)
    assert found.weights[1] == 0.0 < found.weights[0]
    backwards = stacker.fit_for_lists(-np.abs(features * relevant[:, None]), relevant, users)
    assert backwards.weights.tolist() == [0.0, 0.0]


def test_a_part_that_no_list_knows_weighs_nothing() -> None:
    features, relevant, users = worlds(3)
    found = stacker.fit_for_lists(features, relevant, users)
    more = np.column_stack([features, np.full(len(users), np.nan), np.full(len(users), 0.1)])
    again = stacker.fit_for_lists(more, relevant, users)
    assert again.weights == pytest.approx([*found.weights, 0.0, 0.0], abs=1e-4)


def test_models_that_err_differently_share_a_list_though_one_is_best_by_a_hair() -> None:
    random = np.random.default_rng(8)
    users = np.repeat(np.arange(300), 40)
    value = random.normal(size=len(users))
    relevant = random.random(len(users)) < 0.1 / (1 + np.exp(-2 * value))
    noise = random.normal(size=(len(users), 2)) * [1.0, 1.05]
    found = stacker.fit_for_lists(value[:, None] + noise, relevant, users)
    assert 0.75 < found.weights[1] / found.weights[0] < 1.25


@pytest.mark.parametrize("everything", [True, False])
def test_without_anything_relevant_or_with_nothing_else_there_is_no_guess(everything: bool) -> None:
    features, _, users = worlds(2)
    if everything:
        assert np.isfinite(stacker.fit_for_lists(features, np.ones(len(users), dtype=bool), users).intercept)
        return
    with pytest.raises(InputError, match="hybrid: got no liked item that a list could hold"):
        stacker.fit_for_lists(features, np.zeros(len(users), dtype=bool), users)
