"""Scores of any size in [0, 1], and likes as a matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flmrec_spark.stages.baselines.world import in_unit
from tests.small_world import user_of, world_of

SCORES = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20)


@given(SCORES, st.booleans())
def test_scores_become_numbers_from_0_to_1_in_the_same_order(values: list[float], is_probability: bool) -> None:
    scores = np.array(values)
    found = in_unit(scores, is_probability=is_probability)
    assert ((found >= 0) & (found <= 1)).all()
    order = np.argsort(scores, kind="stable")
    assert (np.diff(found[order]) >= 0).all()


def test_log_odds_become_the_probability_and_other_scores_a_half_at_zero() -> None:
    assert in_unit(np.log([1 / 3, 1.0]), is_probability=True) == pytest.approx([0.25, 0.5])
    assert in_unit(np.array([-3.0, 0.0, 1.0]), is_probability=False) == pytest.approx([0.125, 0.5, 0.75])


def test_a_repeated_like_counts_once_and_a_dislike_not_at_all() -> None:
    world = world_of()
    likes = world.likes.toarray()
    assert likes.tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
    ]
    assert user_of(world, "bob").liked_items.tolist() == [0]
    assert user_of(world, "eve").liked_items.tolist() == [0, 1, 2]
