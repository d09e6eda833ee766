"""Counts and means of a small world, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flmrec_spark.stages.baselines import counts
from tests.small_world import ITEM_IDS, user_of, world_of

WORLD = world_of()
MEAN = (9 + 1) / (12 + 2)  # 9 likes in 12 rows
ITEM_MEAN = {
    "a": (4 + 5 * MEAN) / (4 + 5),
    "b": (2 + 5 * MEAN) / (3 + 5),
    "c": (2 + 5 * MEAN) / (3 + 5),
    "d": (1 + 5 * MEAN) / (1 + 5),
    "e": (0 + 5 * MEAN) / (1 + 5),
    "never": MEAN,
}
USER_MEAN = {"ann": (2 + 5 * MEAN) / (3 + 5), "dee": (0 + 5 * MEAN) / (1 + 5), "new": MEAN}


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_popularity_counts_likes_and_a_mean_all_interactions() -> None:
    """A list is judged by what is liked: who counts what was met stands below who counts what was liked."""
    assert WORLD.counts.tolist() == [4, 3, 3, 1, 1, 0]
    assert counts.popularity(WORLD).scores(user_of(WORLD, "ann")) == pytest.approx(np.log1p([4, 2, 2, 1, 0, 0]))


def test_means_are_shrunk_and_know_items_that_nobody_touched() -> None:
    assert pytest.approx(MEAN) == WORLD.mean
    found = counts.item_mean(WORLD).scores(user_of(WORLD, "new"))
    assert dict(zip(ITEM_IDS, found, strict=True)) == pytest.approx({item: logit(p) for item, p in ITEM_MEAN.items()})


@pytest.mark.parametrize("user", USER_MEAN)
def test_a_pairs_score_adds_what_user_and_item_say_in_log_odds(user: str) -> None:
    own = user_of(WORLD, user)
    assert counts.user_mean(WORLD).scores(own) == pytest.approx([logit(USER_MEAN[user])] * len(ITEM_IDS))
    together = counts.user_item_mean(WORLD).scores(own)
    expected = [logit(ITEM_MEAN[item]) + logit(USER_MEAN[user]) - logit(MEAN) for item in ITEM_IDS]
    assert together == pytest.approx(expected)


def test_everything_liked_still_leaves_log_odds_finite() -> None:
    world = world_of([("ann", "a", True)] * 3)
    mean = (3 + 1) / (3 + 2)
    shrunk = (3 + 5 * mean) / (3 + 5)
    found = counts.user_item_mean(world).scores(user_of(world, "ann"))
    assert found[0] == pytest.approx(2 * logit(shrunk) - logit(mean))


def test_an_empty_history_says_nothing() -> None:
    world = world_of([])
    for fit in (counts.popularity, counts.item_mean, counts.user_item_mean):
        assert fit(world).scores(user_of(world, "ann")) == pytest.approx([0.0] * len(ITEM_IDS))
