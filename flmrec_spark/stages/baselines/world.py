"""What every baseline is fitted on and asked: interactions, items and users as arrays, in plain numpy.

Items and users are addressed by place: their ids ascend, so an order by place is an order by id.

Shapes: R interactions, N items, U users with an interaction, H entries of one user's history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from flmrec_spark import columns as c

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

SHRINKAGE = 5.0  # a mean counts as if there were this many more interactions of the global mean


@dataclass(frozen=True)
class World:
    """History and catalogue. Rows go by user, then from the oldest interaction to the newest."""

    item_ids: Sequence[str]  # [N] ascending
    user_ids: Sequence[str]  # [U] ascending; users of the history alone
    items: Places  # [R]
    users: Places  # [R]
    liked: Bools  # [R]
    item_fields: Sequence[Mapping[str, Any]]  # [N] rows of the table items
    user_fields: Sequence[Mapping[str, Any]]  # [U] rows of the table users

    @cached_property
    def counts(self) -> Floats:
        """Interactions of each item, [N]."""
        return np.bincount(self.items, minlength=len(self.item_ids)).astype(np.float64)

    @cached_property
    def n_likes(self) -> Floats:
        """Liked interactions of each item, [N]."""
        return np.bincount(self.items[self.liked], minlength=len(self.item_ids)).astype(np.float64)

    @cached_property
    def mean(self) -> float:
        """Share of liked interactions, (likes + 1) / (R + 2)."""
        return (float(self.liked.sum()) + 1.0) / (len(self.liked) + 2.0)

    def shrunk_mean(self, likes: Any, n: Any) -> Any:
        """(likes + 5 mean) / (n + 5)."""
        return (likes + SHRINKAGE * self.mean) / (n + SHRINKAGE)

    @cached_property
    def likes(self) -> Any:
        """1 where a user liked an item at least once: CSR float64 (U, N)."""
        rows, columns = self.users[self.liked], self.items[self.liked]
        shape = (len(self.user_ids), len(self.item_ids))
        matrix = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape)
        matrix.sum_duplicates()
        matrix.data[:] = 1.0
        return matrix


@dataclass(frozen=True)
class User:
    """One user at the moment of the question; a baseline reads of a user only what stands here."""

    user_id: str
    items: Places  # [H] newest first; items of the catalogue alone
    liked: Bools  # [H]
    fields: Mapping[str, Any] = field(default_factory=dict)  # row of the table users

    @cached_property
    def liked_items(self) -> Places:
        """Distinct places of the items that the user liked at least once, ascending."""
        return np.unique(self.items[self.liked])


class Baseline(Protocol):
    """A fitted recommender; it travels to the executors, so it holds what scoring needs and no more."""

    is_probability: ClassVar[bool]  # scores are log-odds of P(liked)

    def scores(self, user: User) -> Floats | None:
        """Finite scores of all N items, higher is better; None when it knows too little of the user."""
        ...


def logit(probability: Any) -> Any:
    return np.log(probability) - np.log1p(-probability)


def in_unit(scores: Floats, *, is_probability: bool) -> Floats:
    """Scores of any size -> [0, 1], in the same order: sigmoid(x) for log-odds, else (1 + x / (1 + |x|)) / 2."""
    if is_probability:
        return np.asarray(np.exp(-np.logaddexp(0.0, -scores)))
    return np.asarray((1.0 + scores / (1.0 + np.abs(scores))) / 2.0)


def feature_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Attributes of items or users without ids and titles."""
    return [{key: value for key, value in row.items() if key not in (c.ITEM_ID, c.USER_ID, c.TITLE)} for row in rows]
