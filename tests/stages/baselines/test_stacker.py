"""A stack against scikit-learn's own pipeline."""

from __future__ import annotations

import numpy as np
import pytest
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
