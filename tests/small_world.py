"""A world of five users and six items for the baselines, written as rows that can be counted by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flmrec_spark.stages.baselines.world import User, World

ITEM_IDS = ["a", "b", "c", "d", "e", "never"]
ITEM_FIELDS = [
    {"item_id": item, "title": f"title {item}", "genres": genres, "year": year}
    for item, genres, year in zip(
        ITEM_IDS,
        ["Action Sci-Fi", "Action", "Drama", "Drama", None, "Action Drama"],
        [1990, 1991, 2000, None, 2010, 1995],
        strict=True,
    )
]
AGES = {"ann": 20, "bob": 30, "cy": 40, "dee": None, "eve": 60}
ROWS = [  # each user's from the oldest to the newest
    ("ann", "a", True),
    ("ann", "b", True),
    ("ann", "c", False),
    ("bob", "a", True),
    ("bob", "b", False),
    ("bob", "a", True),  # again
    ("cy", "c", True),
    ("cy", "d", True),
    ("dee", "e", False),
    ("eve", "a", True),
    ("eve", "c", True),
    ("eve", "b", True),
]


def world_of(rows: Sequence[tuple[str, str, bool]] = ROWS, *, item_ids: Sequence[str] = ITEM_IDS) -> World:
    """The world of the rows, which go by user; its items are the first of ITEM_FIELDS."""
    users = sorted({user for user, _, _ in rows})
    return World(
        item_ids=item_ids,
        user_ids=users,
        items=np.array([item_ids.index(item) for _, item, _ in rows], dtype=np.int64),
        users=np.array([users.index(user) for user, _, _ in rows], dtype=np.int64),
        liked=np.array([is_liked for _, _, is_liked in rows], dtype=bool),
        item_fields=ITEM_FIELDS[: len(item_ids)],
        user_fields=[{"user_id": user, "age": AGES.get(user)} for user in users],
    )


def random_world(seed: int, *, n_users: int = 30, n_items: int = 12, n_rows: int = 200) -> World:
    """Rows drawn by the seed; the last item is in none of them."""
    draw = np.random.default_rng(seed)
    users = np.sort(draw.integers(0, n_users, n_rows))
    return World(
        item_ids=[f"i{place:03d}" for place in range(n_items)],
        user_ids=[f"u{place:03d}" for place in range(n_users)],
        items=draw.integers(0, n_items - 1, n_rows),
        users=users,
        liked=draw.random(n_rows) < 0.6,
        item_fields=[{"item_id": f"i{place:03d}", "title": "t"} for place in range(n_items)],
        user_fields=[{"user_id": f"u{place:03d}"} for place in range(n_users)],
    )


def user_of(world: World, user_id: str) -> User:
    """The user as their rows say, newest first; without rows, a new one."""
    places = {user: place for place, user in enumerate(world.user_ids)}
    own = np.flatnonzero(world.users == places.get(user_id, -1))[::-1]
    fields = world.user_fields[places[user_id]] if user_id in places else {}
    return User(user_id, world.items[own], world.liked[own], fields)
