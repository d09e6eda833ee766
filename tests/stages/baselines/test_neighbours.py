"""Item-to-item baselines against scikit-learn, a ridge regression per item, and counts by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import cosine_similarity

from flmrec_spark.errors import InputError
from flmrec_spark.stages.baselines import neighbours
from flmrec_spark.stages.baselines.world import World
from tests.small_world import random_world, user_of, world_of


@pytest.mark.parametrize("block", [1, 50, 10**6])
def test_item_knn_without_shrinkage_is_the_sum_of_cosines(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK_CELLS", block)
    world = random_world(1)
    likes = world.likes.toarray()
    cosines = cosine_similarity(likes.T)
    np.fill_diagonal(cosines, 0.0)
    fitted = neighbours.item_knn(world, shrinkage=1e-12)
    for user in ("u000", "u007", "u029"):
        found = fitted.scores(user_of(world, user))
        assert found == pytest.approx(likes[world.user_ids.index(user)] @ cosines)


def test_item_knn_shrinks_by_hand_and_an_untouched_item_gets_nothing() -> None:
    world = world_of()  # a is liked by ann, bob, eve; b by ann, eve; c by cy, eve; d by cy
    found = neighbours.item_knn(world).scores(user_of(world, "bob"))  # likes a alone
    assert found is not None
    a_b, a_c = 2 / (np.sqrt(3 * 2) + 20), 1 / (np.sqrt(3 * 2) + 20)
    assert found == pytest.approx([0, a_b, a_c, 0, 0, 0])


def test_item_knn_keeps_the_nearest_of_each_item() -> None:
    world = random_world(2)
    fitted = neighbours.item_knn(world, neighbours=2)
    likes = world.likes.toarray()
    norm = np.linalg.norm(likes, axis=0)
    similar = likes.T @ likes / (np.outer(norm, norm) + neighbours.COSINE_SHRINKAGE)
    np.fill_diagonal(similar, 0.0)
    for item in range(len(world.item_ids)):
        nearest = np.lexsort((np.arange(len(similar)), -similar[item]))[:2]
        expected = np.zeros(len(similar))
        expected[nearest] = similar[item, nearest]
        assert fitted.weights[:, [item]].toarray().ravel() == pytest.approx(expected)


def test_ease_is_a_ridge_regression_of_each_item_on_the_others() -> None:
    world = random_world(3)
    likes = world.likes.toarray()
    weights = neighbours.ease(world, ridge=50.0).weights
    assert np.diag(weights) == pytest.approx(0.0)
    for item in range(likes.shape[1]):
        others = np.delete(np.arange(likes.shape[1]), item)
        ridge = Ridge(alpha=50.0, fit_intercept=False).fit(likes[:, others], likes[:, item])
        assert weights[others, item] == pytest.approx(ridge.coef_, abs=1e-6)
    own = user_of(world, "u004")
    found = neighbours.ease(world, ridge=50.0).scores(own)
    assert found == pytest.approx(likes[4] @ weights, abs=1e-6)
    assert found is not None and found[-1] == 0.0  # nobody touched it


def test_ease_refuses_a_catalogue_that_its_matrix_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "EASE_MAX_ITEMS", 5)
    with pytest.raises(InputError, match="ease: got 6 items, expected at most 5"):
        neighbours.ease(world_of())


def test_markov_counts_what_came_next_and_backs_off_to_shares() -> None:
    world = world_of()
    share = (np.array([4, 3, 3, 1, 1, 0]) + 1) / (12 + 6)
    # after b came c (ann) and a (bob); the newest of eve is b
    found = neighbours.markov(world).scores(user_of(world, "eve"))
    assert found == pytest.approx(np.log((np.array([1, 0, 1, 0, 0, 0]) + 20 * share) / (2 + 20)))
    # after d came nothing; cy's rows end there, and dee's begin
    last = neighbours.markov(world).scores(user_of(world, "cy"))
    assert last == pytest.approx(np.log(share))


def test_who_likes_nothing_or_has_done_nothing_is_not_known() -> None:
    world = world_of()
    dee, new = user_of(world, "dee"), user_of(world, "new")
    assert neighbours.markov(world).scores(dee) is not None
    assert neighbours.markov(world).scores(new) is None
    for fit in (neighbours.item_knn, neighbours.ease):
        assert fit(world).scores(dee) is None
        assert fit(world).scores(new) is None


def test_scoring_leaves_what_was_fitted_as_it_was() -> None:
    world = world_of()
    fitted = neighbours.markov(world)
    first = fitted.scores(user_of(world, "eve"))
    assert isinstance(fitted.follows, sparse.csr_matrix)
    for _ in range(2):
        assert fitted.scores(user_of(world, "eve")) == pytest.approx(first)


@pytest.mark.parametrize("fit", [neighbours.item_knn, neighbours.ease])
def test_of_a_user_whose_likes_nobody_shares_nothing_is_known(fit: Callable[[World], Any]) -> None:
    rows = [("ann", "a", True), ("ann", "b", True), ("bob", "a", True), ("bob", "b", True), ("cy", "e", True)]
    world = world_of(rows)
    fitted = fit(world)
    assert fitted.scores(user_of(world, "cy")) is None
    assert fitted.scores(user_of(world, "ann")) is not None
