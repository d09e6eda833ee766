"""Segments of users and items: who is in which, and what is left of a world within one."""

from __future__ import annotations

import numpy as np
import pytest

from flmrec_spark.stages.segments import (
    ALL,
    COLD,
    COLD_ITEMS,
    COLD_USERS,
    HEAD,
    HEAD_ITEMS,
    KINDS,
    TAIL,
    TAIL_ITEMS,
    WARM_ITEMS,
    WARM_USERS,
    HeldOut,
    Segment,
    item_kinds,
    segments,
)

WORLD = HeldOut(
    users=np.array([0, 0, 2, 2, 3]),
    labels=np.array([True, False, True, True, False]),
    kinds=np.array([COLD, HEAD, TAIL, HEAD, COLD]),
    relevant=np.array([[1, 0, 0], [0, 0, 0], [0, 2, 1], [0, 0, 1]]),
    n_history=np.array([0, 4, 5, 100]),
)


def named(name: str) -> Segment:
    return next(segment for segment in segments(WORLD) if segment.name == name)


def test_an_item_is_cold_without_history_and_in_the_head_with_most() -> None:
    assert item_kinds(np.array([1, 0, 7, 2, 3])).tolist() == [TAIL, COLD, HEAD, TAIL, TAIL]
    assert item_kinds(np.zeros(5, dtype=int)).tolist() == [COLD] * 5


@pytest.mark.parametrize(
    ("name", "users", "kinds"),
    [
        (ALL, [1, 1, 1, 1], KINDS),
        (WARM_USERS, [0, 1, 1, 1], KINDS),
        (COLD_USERS, [1, 0, 0, 0], KINDS),
        ("history 1-4", [0, 1, 0, 0], KINDS),
        ("history 5-19", [0, 0, 1, 0], KINDS),
        ("history 20-99", [0, 0, 0, 0], KINDS),
        ("history 100+", [0, 0, 0, 1], KINDS),
        (WARM_ITEMS, [1, 1, 1, 1], (TAIL, HEAD)),
        (COLD_ITEMS, [1, 1, 1, 1], (COLD,)),
        (HEAD_ITEMS, [1, 1, 1, 1], (HEAD,)),
        (TAIL_ITEMS, [1, 1, 1, 1], (COLD, TAIL)),
        ("warm users, warm items", [0, 1, 1, 1], (TAIL, HEAD)),
        ("warm users, cold items", [0, 1, 1, 1], (COLD,)),
        ("cold users, warm items", [1, 0, 0, 0], (TAIL, HEAD)),
        ("cold users, cold items", [1, 0, 0, 0], (COLD,)),
    ],
)
def test_a_segment_is_a_set_of_users_and_kinds_of_items(name: str, users: list[int], kinds: tuple[int, ...]) -> None:
    found = named(name)
    assert found.users.tolist() == [bool(is_in) for is_in in users]
    assert found.kinds == kinds
    assert found.is_of_users == (kinds == KINDS)


def test_bands_and_temperatures_and_popularities_each_part_the_users_or_items() -> None:
    every = list(segments(WORLD))
    assert every[0].name == ALL
    assert len({segment.name for segment in every}) == len(every) == 15
    bands = [segment.users for segment in every if segment.name.startswith("history") or segment.name == COLD_USERS]
    assert np.sum(bands, axis=0).tolist() == [1, 1, 1, 1]
    for names in ((WARM_ITEMS, COLD_ITEMS), (HEAD_ITEMS, TAIL_ITEMS)):
        assert sorted(kind for name in names for kind in named(name).kinds) == sorted(KINDS)


def test_within_a_segment_users_are_numbered_anew_and_only_its_items_count() -> None:
    part = WORLD.only(named("warm users, warm items"))
    assert part.users.tolist() == [1, 1]
    assert part.labels.tolist() == [True, True]
    assert part.relevant.tolist() == [[0, 0, 0], [0, 2, 1], [0, 0, 1]]
    assert part.n_relevant.tolist() == [0, 3, 1]
    assert part.n_history.tolist() == [4, 5, 100]
    assert WORLD.only(named(ALL)).users.tolist() == WORLD.users.tolist()
