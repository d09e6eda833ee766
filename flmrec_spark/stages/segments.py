"""What was held out, and the parts of it that are measured apart.

A segment is a set of users and a set of kinds of items. Of a user in it the rows with such items count and, of the
lists, the hits among such items: a list is always made from the whole catalogue.

warm users       have history; cold users have none
history 1-4, ..  users by the number of interactions in their history
head items       the fifth of the items with the most history (`list_metrics.head_items`); tail items are the others
warm items       have history; cold items have none, and are in the tail
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flmrec_spark.bootstrap import Array
from flmrec_spark.list_metrics import head_items

COLD, TAIL, HEAD = 0, 1, 2  # kinds of items; TAIL has history
KINDS = (COLD, TAIL, HEAD)
ALL = "all"
WARM_USERS, COLD_USERS = "warm users", "cold users"
WARM_ITEMS, COLD_ITEMS = "warm items", "cold items"
HEAD_ITEMS, TAIL_ITEMS = "head items", "tail items"
BANDS = ((1, 4), (5, 19), (20, 99), (100, None))  # interactions in the history


@dataclass(frozen=True)
class Segment:
    name: str
    users: Array  # [U] bool
    kinds: tuple[int, ...]

    @property
    def is_of_users(self) -> bool:
        return self.kinds == KINDS


@dataclass(frozen=True)
class HeldOut:
    """What was held out: R rows of U users."""

    users: Array  # [R] 0 .. U - 1
    labels: Array  # [R] bool, liked
    kinds: Array  # [R] kind of the item
    relevant: Array  # [U, kinds] liked items that a list could hold
    n_history: Array  # [U] interactions in the history

    @cached_property
    def n_relevant(self) -> Array:
        n: Array = self.relevant.sum(axis=1)
        return n

    def rows_of(self, segment: Segment) -> Array:
        """[R] bool."""
        return segment.users[self.users] & np.isin(self.kinds, segment.kinds)

    def only(self, segment: Segment) -> HeldOut:
        """The users of the segment, numbered anew in the same order, with what of theirs is in it."""
        rows, place = self.rows_of(segment), np.cumsum(segment.users) - 1
        return HeldOut(
            users=place[self.users[rows]],
            labels=self.labels[rows],
            kinds=self.kinds[rows],
            relevant=self.relevant[segment.users] * np.isin(KINDS, segment.kinds),
            n_history=self.n_history[segment.users],
        )


def item_kinds(counts: Array) -> Array:
    """Interactions of each item in the history [I] -> its kind [I]."""
    return np.where(head_items(counts), HEAD, np.where(counts > 0, TAIL, COLD))


def segments(world: HeldOut) -> Iterator[Segment]:
    """All first; also those that nobody is in."""
    everyone = np.ones(len(world.n_history), dtype=bool)
    warm = world.n_history > 0
    users = {WARM_USERS: warm, COLD_USERS: ~warm}
    items = {WARM_ITEMS: (TAIL, HEAD), COLD_ITEMS: (COLD,)}
    yield Segment(ALL, everyone, KINDS)
    for name, members in users.items():
        yield Segment(name, members, KINDS)
    for low, high in BANDS:
        is_below = everyone if high is None else world.n_history <= high
        yield Segment(band(low, high), (world.n_history >= low) & is_below, KINDS)
    for name, kinds in (items | {HEAD_ITEMS: (HEAD,), TAIL_ITEMS: (COLD, TAIL)}).items():
        yield Segment(name, everyone, kinds)
    for user_name, members in users.items():
        for item_name, kinds in items.items():
            yield Segment(f"{user_name}, {item_name}", members, kinds)


def band(low: int, high: int | None) -> str:
    return f"history {low}+" if high is None else f"history {low}-{high}"
