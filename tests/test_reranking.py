"""Diverse lists against the formula written out item by item, and what must hold of any list."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from flmrec_spark.ranking import best
from flmrec_spark.reranking import (
    PLAIN,
    STEPS,
    Caps,
    Reranker,
    SparseVectors,
    caps_of,
    cosines,
    in_steps,
    scaled,
    values_of,
)

GENRES = ["Action", "Comedy", "Drama"]


class Dense:
    """Vectors in steps."""

    def __init__(self, vectors: Any) -> None:
        self.vectors = in_steps(vectors)

    def of(self, items: Any) -> Any:
        return self.vectors[items]


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    lengths = math.sqrt(sum(x * x for x in one)) * math.sqrt(sum(x * x for x in other))
    return sum(x * y for x, y in zip(one, other, strict=True)) / lengths if lengths else 0.0


def expected(
    scores: Sequence[float],
    vectors: Sequence[Sequence[float]],
    genres: Sequence[set[str]],
    *,
    relevance: float,
    pool: int,
    most: int,
    n: int,
    allowed: Sequence[bool],
) -> list[int]:
    """The list as the module's text says it, in plain Python; cosines by way of whole steps, as ties depend on them."""
    order = sorted((place for place in range(len(scores)) if allowed[place]), key=lambda place: (-scores[place], place))
    near, behind = order[: max(n, pool)], order[max(n, pool) :]
    low, high = (min(scores[p] for p in near), max(scores[p] for p in near)) if near else (0, 0)
    steps = in_steps(vectors).astype(float).tolist()
    chosen: list[int] = []

    def fits(place: int) -> bool:
        held = Counter(genre for other in chosen for genre in genres[other])
        return all(held[genre] < most for genre in genres[place])

    def worth(place: int) -> float:
        r = (scores[place] - low) / (high - low) if high > low else 1.0
        alike = [sum(x * y for x, y in zip(steps[place], steps[other], strict=True)) / STEPS**2 for other in chosen]
        return relevance * r - (1.0 - relevance) * (max(alike) if alike else 0.0)

    while len(chosen) < n:
        open_ones = [place for place in near if place not in chosen and fits(place)]
        if not open_ones:
            break
        chosen.append(max(open_ones, key=worth))  # the first of equal ones
    for place in behind:
        if len(chosen) < n and fits(place):
            chosen.append(place)
    return sorted(chosen, key=lambda place: (-scores[place], place))


WORLDS = st.integers(1, 14).flatmap(
    lambda size: st.tuples(
        st.lists(st.integers(0, 6).map(lambda x: x / 8), min_size=size, max_size=size),
        st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=size, max_size=size),
        st.lists(st.sets(st.sampled_from(GENRES)), min_size=size, max_size=size),
        st.lists(st.booleans(), min_size=size, max_size=size),
    )
)


@given(
    world=WORLDS,
    relevance=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    pool=st.integers(1, 15),
    most=st.integers(1, 4),
    n=st.integers(1, 8),
)
def test_a_list_is_the_formula_item_by_item(world: Any, relevance: float, pool: int, most: int, n: int) -> None:
    scores, vectors, genres, allowed = world
    caps = caps_of([{"genres": sorted(own)} for own in genres], {"genres": most}, {})
    reranker = Reranker(relevance, pool, Dense(vectors), caps)
    rules = {"relevance": relevance, "pool": pool, "most": most, "n": n}
    found = reranker.best(np.array(scores), n, allowed=np.array(allowed))
    assert found.tolist() == expected(scores, vectors, genres, **rules, allowed=allowed)

    # the same items asked in any order, by their places in a larger catalogue
    asked = np.flatnonzero(allowed)
    again = reranker.best(np.array(scores)[asked], n, items=asked)
    assert asked[again].tolist() == found.tolist()

    # the best that may be listed is; a value has its room; nothing that was left fits, unless the list is whole
    held = Counter(genre for place in found for genre in genres[place])
    assert max(held.values(), default=0) <= most
    left = [place for place in asked if place not in found]
    if len(found) < n:
        assert all(any(held[genre] == most for genre in genres[place]) for place in left)
    if len(asked):
        assert found[0] == best(np.array(scores), 1, allowed=np.array(allowed))[0]


@given(st.lists(st.floats(0, 1), max_size=20), st.integers(1, 9), st.integers(1, 30))
def test_without_caps_and_with_relevance_alone_the_list_is_the_best_by_score(
    scores: list[float], n: int, pool: int
) -> None:
    values = np.array(scores, dtype=float)
    vectors = np.ones((len(scores), 2))
    plain = best(values, n).tolist()
    assert PLAIN.best(values, n).tolist() == plain
    assert Reranker(1.0, pool, Dense(vectors)).best(values, n).tolist() == plain
    free = Caps(sparse.csr_matrix((len(scores), 0)), np.zeros(0, dtype=np.int64))
    assert Reranker(1.0, pool, None, free).best(values, n).tolist() == plain


def test_less_relevance_lists_what_is_unlike_the_list() -> None:
    scores = np.array([0.9, 0.89, 0.88, 0.5, 0.1])
    vectors = SparseVectors(sparse.csr_matrix([[1.0, 0], [1, 0], [1, 0], [0, 1], [0, 1]]))
    lists = {relevance: Reranker(relevance, 5, vectors).best(scores, 2).tolist() for relevance in (1.0, 0.7, 0.5, 0.0)}
    assert lists == {1.0: [0, 1], 0.7: [0, 1], 0.5: [0, 3], 0.0: [0, 3]}
    assert Reranker(0.0, 3, vectors).best(scores, 2).tolist() == [0, 1]  # 3 is not among the three best


def test_caps_look_behind_the_pool_and_a_list_ends_where_nothing_fits() -> None:
    genres = ["Action"] * 6 + ["Drama", "Action", "Comedy Drama", "Drama", ""]
    caps = caps_of([{"genres": each} for each in genres], {"genres": 2}, {"genres": " "})
    reranker = Reranker(1.0, 3, None, caps)
    scores = np.linspace(0.9, 0.1, len(genres))
    assert reranker.best(scores, 3).tolist() == [0, 1, 6]
    assert reranker.best(scores, 9).tolist() == [0, 1, 6, 8, 10]  # two of a kind each, and one without a genre
    assert reranker.best(scores[:6], 9, items=np.arange(6)[::-1]).tolist() == [0, 1]


def test_nothing_to_choose_from_is_an_empty_list() -> None:
    caps = caps_of([{"genres": "a"}] * 2, {"genres": 1}, {})
    reranker = Reranker(0.5, 3, Dense(np.ones((2, 2))), caps)
    assert reranker.best(np.array([0.5, 0.4]), 2, allowed=np.zeros(2, dtype=bool)).tolist() == []


def test_the_greatest_score_is_scaled_to_1_and_the_least_to_0() -> None:
    assert scaled(np.array([0.9, 0.7, 0.8])).tolist() == pytest.approx([1.0, 0.0, 0.5])
    assert scaled(np.array([0.3, 0.3])).tolist() == [1.0, 1.0]
    assert scaled(np.zeros(0)).tolist() == []


@pytest.mark.parametrize("size", [3, 384, 4096])
def test_cosines_have_the_same_bits_in_any_order_of_adding(size: int) -> None:
    draw = np.random.default_rng(size)
    vectors = draw.normal(size=(20, size)) * draw.uniform(1e-3, 1e3, size=(20, 1))
    vectors[3] = 0.0
    steps = in_steps(vectors)
    found = cosines(steps)
    order = draw.permutation(size)
    assert (cosines(steps[:, order]) == found).all()
    assert (cosines(np.asfortranarray(steps)) == found).all()
    exact = np.array([[cosine(one, other) for other in vectors] for one in vectors])
    assert np.abs(found - exact).max() < 2e-3
    assert (found[3] == 0).all()


@pytest.mark.parametrize(
    ("value", "separator", "values"),
    [
        ("Action Sci-Fi", None, ["Action Sci-Fi"]),
        ("Action Sci-Fi", " ", ["Action", "Sci-Fi"]),
        (" Action ,Drama,, Action", ",", ["Action", "Drama"]),
        (["b", "a", None, "b "], ",", ["a", "b"]),
        (1995, None, ["1995"]),
        (None, None, []),
        (float("nan"), None, []),
        ("  ", None, []),
        ([], None, []),
    ],
)
def test_an_attribute_has_the_values_that_its_text_or_list_holds(
    value: object, separator: str | None, values: list[str]
) -> None:
    assert values_of(value, separator) == values


def test_caps_of_several_attributes_count_apart() -> None:
    items = [{"genres": "a b", "year": "a"}, {"genres": "b", "year": "c"}, {"genres": None, "year": "a"}]
    caps = caps_of(items, {"genres": 2, "year": 1}, {"genres": " "})
    assert caps is not None
    assert caps.values.toarray().sum(axis=1).tolist() == [3, 2, 1]
    assert sorted(caps.most.tolist()) == [1, 1, 2, 2]
    assert Reranker(1.0, 3, None, caps).best(np.array([0.9, 0.8, 0.7]), 3).tolist() == [0, 1]
    assert caps_of(items, {}, {}) is None
