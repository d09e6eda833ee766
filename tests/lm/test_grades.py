"""Labels that say how much an interaction was liked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flmrec_spark.lm.grades import Grades


def graded(values: Any, is_liked: Any) -> Any:
    return Grades.of(values, is_liked).labels(values, is_liked)


rows = st.lists(st.integers(1, 6), min_size=1, max_size=40)


def test_labels_worked_out_by_hand() -> None:
    values, liked = np.array([5, 4, 4, 5, 3, 1, 3, 2]), np.array([1, 1, 1, 1, 0, 0, 0, 0], dtype=bool)
    # two of four liked rows are above a 4; one of four disliked ones is below a 2, two are below a 3
    expected = np.array([1, 0.75, 0.75, 1, 0.25, 0, 0.25, 0.125], dtype=np.float32)
    np.testing.assert_array_equal(graded(values, liked), expected)


@pytest.mark.parametrize("is_liked", [True, False])
def test_where_all_of_a_side_have_one_value_labels_are_liked_or_not(is_liked: bool) -> None:
    values, liked = np.array([1.0, 1.0, 5.0]), np.array([False, False, True])
    np.testing.assert_array_equal(graded(values, liked), liked)
    alone = np.full(3, is_liked)
    np.testing.assert_array_equal(graded(values[:2], alone[:2]), alone[:2])


@given(rows, st.integers(1, 7))
def test_labels_keep_the_order_of_the_values_and_the_side_of_one_half(values: list[int], threshold: int) -> None:
    own = np.array(values)
    liked = own >= threshold
    labels = graded(own, liked)
    assert labels.dtype == np.float32 and ((labels >= 0) & (labels <= 1)).all()
    assert ((labels > 0.5) == liked).all()
    for one, label in zip(own, labels, strict=True):
        assert (labels[own > one] > label).all() and (labels[own == one] == label).all()


@given(rows, st.integers(1, 7))
def test_only_the_order_of_the_values_counts(values: list[int], threshold: int) -> None:
    own = np.array(values)
    liked = own >= threshold
    stretched = np.exp(own.astype(float))
    np.testing.assert_array_equal(graded(stretched, liked), graded(own, liked))


def test_other_values_stand_between_those_that_were_seen_and_no_value_is_liked_or_not() -> None:
    grades = Grades.of([1, 3, 4, 5], [False, False, True, True])
    asked = [2, 0, 9, 4.5, None, None], [False, False, True, True, True, False]
    np.testing.assert_allclose(grades.labels(*asked), [0.125, 0, 1, 0.875, 1, 0])
    nothing = Grades.of([], [])
    np.testing.assert_array_equal(nothing.labels([3, 3], [True, False]), [1, 0])


def test_a_million_values_are_told_by_some_hundred() -> None:
    values = np.random.default_rng(1).lognormal(size=20_000)
    liked = values > 1
    grades = Grades.of(values, liked)
    assert len(grades.liked) + len(grades.disliked) <= 512
    among = np.sort(values[liked])
    exact = 1 - 0.5 * (len(among) - np.searchsorted(among, values[liked], side="right")) / len(among)
    np.testing.assert_allclose(grades.labels(values, liked)[liked], exact, atol=0.003)
