"""What lists are like: small worlds by hand, and random ones against definitions spelled out pair by pair."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import normalize

from flmrec_spark import list_metrics

N_ITEMS, K = 6, 4
Lists = npt.NDArray[Any]


@st.composite
def lists(draw: st.DrawFn) -> Lists:
    """Up to 8 users' lists of up to 4 of 6 items, some short, some empty."""
    rows = draw(st.lists(st.lists(st.integers(0, N_ITEMS - 1), unique=True, max_size=K), min_size=1, max_size=8))
    return np.array([row + [-1] * (K - len(row)) for row in rows])


def listed(row: Lists, k: int) -> list[int]:
    return [int(place) for place in row[:k] if place >= 0]


@given(lists(), st.integers(1, K))
def test_coverage_and_gini_are_those_of_the_lists_one_by_one(places: Lists, k: int) -> None:
    times = list_metrics.times_listed(places, N_ITEMS, k=k)
    every = [item for row in places for item in listed(row, k)]
    assert times.tolist() == [every.count(item) for item in range(N_ITEMS)]
    assert list_metrics.coverage(times) == len(set(every)) / N_ITEMS
    # half of the mean absolute difference of all pairs, over the mean, scaled so that one item alone gives 1
    spread = sum(abs(int(a) - int(b)) for a in times for b in times) / 2 / N_ITEMS**2
    expected = spread / times.mean() * N_ITEMS / (N_ITEMS - 1) if every else math.nan
    assert list_metrics.gini(times) == pytest.approx(expected, nan_ok=True)


def test_gini_is_0_for_equal_items_and_1_for_one_alone() -> None:
    assert list_metrics.gini(np.array([3, 3, 3])) == pytest.approx(0)
    assert list_metrics.gini(np.array([0, 7, 0, 0])) == pytest.approx(1)
    assert math.isnan(list_metrics.gini(np.array([5])))
    assert math.isnan(list_metrics.gini(np.zeros(3, dtype=int)))


def test_self_information_is_in_bits_and_finite_for_an_item_that_nobody_touched() -> None:
    # with one added to each of four items the shares are 1/2, 1/4, 1/8, 1/8
    assert list_metrics.self_information(np.array([3, 1, 0, 0])).tolist() == [1, 2, 3, 3]


def test_the_head_is_the_fifth_of_the_items_with_most_interactions_and_never_one_without() -> None:
    counts = np.array([1, 9, 0, 9, 2, 0, 0, 0, 0, 0])
    assert np.flatnonzero(list_metrics.head_items(counts)).tolist() == [1, 3]
    assert np.flatnonzero(list_metrics.head_items(np.array([5, 5, 5, 5, 5]))).tolist() == [0]
    assert not list_metrics.head_items(np.zeros(10, dtype=int)).any()


@given(lists(), st.integers(1, K))
def test_the_mean_of_a_list_is_over_the_items_that_it_holds(places: Lists, k: int) -> None:
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    each = [[values[item] for item in listed(row, k)] for row in places]
    expected = [np.mean(row) if row else math.nan for row in each]
    assert list_metrics.mean_of_items(values, places, k=k).tolist() == pytest.approx(expected, nan_ok=True)


@given(lists(), st.integers(1, K), st.integers(0, 2**32 - 1))
def test_diversity_is_the_mean_distance_of_sklearns_cosine_over_pairs(places: Lists, k: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    terms = normalize(random.random((N_ITEMS, 5)) * (random.random((N_ITEMS, 5)) < 0.4))  # some rows have no term
    alike = cosine_similarity(terms)
    pairs = [[1 - alike[a, b] for a, b in combinations(listed(row, k), 2)] for row in places]
    expected = [np.mean(row) if row else math.nan for row in pairs]
    got = list_metrics.diversity(sparse.csr_matrix(terms), places, k=k)
    assert got.tolist() == pytest.approx(expected, nan_ok=True)


@given(lists(), st.integers(1, K), st.integers(0, 2**32 - 1))
def test_serendipity_counts_hits_that_popularity_would_not_have_listed(places: Lists, k: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    expected = np.array([random.permutation(N_ITEMS)[:K] for _ in places])
    hits = (random.random(places.shape) < 0.5) & (places >= 0)
    n_relevant = hits.sum(axis=1)
    got = list_metrics.serendipity(hits, places, expected, n_relevant, k=k)
    for user, value in enumerate(got):
        relevant = {int(item) for item, is_hit in zip(places[user, :k], hits[user, :k], strict=True) if is_hit}
        surprising = relevant - set(expected[user, :k].tolist())
        assert value == pytest.approx(len(surprising) / k if n_relevant[user] else math.nan, nan_ok=True)


def test_every_quality_of_a_list_is_either_of_all_lists_or_per_list() -> None:
    assert set(list_metrics.OF_ALL_LISTS) | set(list_metrics.PER_LIST) == set(list_metrics.LIST_QUALITIES)
    assert set(list_metrics.LIST_QUALITIES) >= list_metrics.LOWER_IS_LESS_POPULAR
