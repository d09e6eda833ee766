"""Where offsets start, against scikit-learn's logistic regression and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from flmrec_spark.lm.offsets import fit_offsets


def by_sklearn(users, items, liked, n_users, n_items, variances):
    """A feature that is s times as large has a weight that is penalised 1 / s^2 times as much."""
    scales, sides = np.sqrt(variances), ((n_users, users), (n_items, items))
    ids = [scale * sparse.identity(n, format="csr")[places] for scale, (n, places) in zip(scales, sides, strict=True)]
    features = sparse.vstack([sparse.hstack(ids), sparse.csr_matrix((2, n_users + n_items))]).tocsr()
    weights = np.append(np.ones(len(liked)), [0.5, 0.5])  # half a row on each side, of nobody and nothing
    fitted = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000)
    found = fitted.fit(features, np.append(liked, [True, False]), sample_weight=weights)
    weights = np.split(found.coef_[0], [n_users])
    return [scale * own for scale, own in zip(scales, weights, strict=True)]


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 9), st.floats(0.02, 0.98))
def test_offsets_are_those_of_a_penalised_logistic_regression(seed, n_users, n_items, share):
    draw = np.random.default_rng(seed)
    n = int(draw.integers(1, 120))
    users, items = draw.integers(0, n_users, n), draw.integers(0, n_items, n)
    liked = draw.random(n) < share
    got = fit_offsets(users, items, liked, n_users=n_users, n_items=n_items)
    expected_of = by_sklearn(users, items, liked, n_users, n_items, got.variances)
    rest = got.level + got.user[users] + got.item[items]
    assert (1 / (1 + np.exp(-rest))).mean() == pytest.approx((liked.sum() + 0.5) / (n + 1), abs=0.5 / n)
    for own, expected in zip((got.user, got.item), expected_of, strict=True):
        assert own.dtype == np.float32
        np.testing.assert_allclose(own, expected, atol=0.02)


def test_an_id_without_rows_has_none_and_no_rows_have_none():
    found = fit_offsets([1, 1], [2, 0], [True, False], n_users=3, n_items=4)
    assert found.user[0] == found.user[2] == found.item[1] == found.item[3] == 0
    assert found.item[2] == pytest.approx(-found.item[0], abs=1e-3) and found.item[2] > 0.1
    nothing = fit_offsets([], [], [], n_users=2, n_items=1)
    assert nothing.user.tolist() == [0, 0] and nothing.item.tolist() == [0]


@pytest.mark.parametrize(("of_users", "of_items"), [(0.0, 1.0), (1.0, 0.0), (0.5, 2.0)])
def test_the_variances_are_found_and_where_there_is_none_nobody_is_told_from_another(of_users, of_items):
    draw = np.random.default_rng(5)
    n_users, n_items = 400, 200
    user, item = draw.normal(0, of_users**0.5, n_users), draw.normal(0, of_items**0.5, n_items)
    users, items = np.repeat(np.arange(n_users), 15), draw.integers(0, n_items, 15 * n_users)
    liked = draw.random(len(users)) < 1 / (1 + np.exp(1 - user[users] - item[items]))
    found = fit_offsets(users, items, liked, n_users=n_users, n_items=n_items)
    truth = ((found.user, user, of_users), (found.item, item, of_items))
    for variance, (own, true, expected) in zip(found.variances, truth, strict=True):
        if expected:
            assert variance == pytest.approx(expected, rel=0.5)  # Laplace's is known to be low
            assert np.corrcoef(own, true)[0, 1] > 0.7
        else:
            assert variance < 0.05 and np.abs(own).max() < 0.3


def test_whoever_met_only_what_all_like_is_not_taken_for_one_who_likes_all():
    """Users 1 and 2 like half of what they met: of what nine in ten like, and of what one in ten does."""
    crowd = [
        (3 + place, item, liked) for place in range(40) for item, liked in ((0, place % 10 > 0), (1, place % 10 == 0))
    ]
    rows = [*crowd, *[(1, 0, place % 2) for place in range(8)], *[(2, 1, place % 2) for place in range(8)]]
    found = fit_offsets(*zip(*rows, strict=True), n_users=43, n_items=2)
    assert found.user[1] < -0.15 and found.user[2] > 0.15
    assert found.item[0] > 1 and found.item[1] < -1


@pytest.mark.parametrize("n_disliked", [0, 1])
def test_offsets_of_a_large_log_in_which_all_is_liked_are_finite_and_small(n_disliked):
    """Purchases alone."""
    counts = np.array([1, 50, 5_000, 200_000])
    items = np.repeat(np.arange(4), counts)
    users = np.arange(len(items)) % 1000
    liked = np.arange(len(items)) >= n_disliked  # the first row is all that is known of item 0
    found = fit_offsets(users, items, liked, n_users=1000, n_items=4)
    assert np.isfinite(found.user).all() and np.isfinite(found.item).all()
    every = np.concatenate([found.user, found.item])
    assert np.abs(every).max() < (10 if n_disliked else 0.2)
    assert found.item.argmin() == 0


def test_the_order_of_the_rows_changes_nothing_but_the_last_bits():
    draw = np.random.default_rng(3)
    rows = np.column_stack([draw.integers(0, 20, 300), draw.integers(0, 30, 300), draw.integers(0, 2, 300)])
    first, again = (fit_offsets(*part.T, n_users=20, n_items=30) for part in (rows, draw.permutation(rows)))
    np.testing.assert_allclose(first.user, again.user, atol=1e-6)
    np.testing.assert_allclose(first.item, again.item, atol=1e-6)
