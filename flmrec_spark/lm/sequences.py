"""A split as one array per user, oldest first: what factors are learned from and tastes are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flmrec_spark.lm.collaborative import Bools, Floats, Places, rows_of
from flmrec_spark.lm.offsets import Offsets, fit_offsets

Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """B rows; T targets each, -1 where there are fewer."""

    rows: Tensor  # (E,) of `Factors.history`, all histories behind each other
    ages: Tensor  # (E,) from 0 on
    starts: Tensor  # (B,) first entry of each row
    users: Tensor  # (B,)
    targets: Tensor  # (B, T)
    labels: Tensor  # (B, T) float32 in 0 .. 1, liked above 1/2


@dataclass(frozen=True)
class Sequences:
    """R interactions of U users and N items, by user, then from the oldest to the newest."""

    users: Index  # (R,) ascending
    items: Places  # (R,)
    liked: Bools  # (R,)
    moments: Index  # (R,) ascending within a user; rows of one moment are in no other's history
    labels: Floats  # (R,) in 0 .. 1, liked above 1/2
    n_users: int
    n_items: int

    @classmethod
    def of(
        cls,
        users: Index,
        items: Index,
        liked: Any,
        moments: Any,
        labels: Any = None,
        *,
        n_users: int,
        n_items: int,
    ) -> Sequences:
        """From rows in any order; of equal moments the larger place comes first, so that the newest first is by place.

        Rows of an item that is not known (-1) are left out. Labels are 1 and 0 by default.
        """
        known = items >= 0
        parts = (users, items, liked, moments, liked if labels is None else labels)
        users, items, liked, moments, labels = (np.asarray(part)[known] for part in parts)
        order = np.lexsort((-items, moments, users))
        liked, labels = liked[order].astype(bool), labels[order].astype(np.float32)
        return cls(users[order], items[order].astype(np.intp), liked, moments[order], labels, n_users, n_items)

    @cached_property
    def starts(self) -> Index:
        """(U + 1,): the rows of user u are starts[u] .. starts[u + 1] - 1."""
        return np.searchsorted(self.users, np.arange(self.n_users + 1))

    def before(self, user: int, moment: float, n: int) -> tuple[Places, Floats]:
        """The n newest interactions of a user before a moment, newest first, and their labels."""
        start, stop = self.starts[user], self.starts[user + 1]
        stop = start + np.searchsorted(self.moments[start:stop], moment)
        own = slice(max(start, stop - n), stop)
        return self.items[own][::-1], self.labels[own][::-1]

    def rows(self, n_targets: int) -> Index:
        """(B, 4): first history row, end of the history, first target, end of the targets, of every part of a user."""
        found = []
        for user in range(self.n_users):
            start, stop = int(self.starts[user]), int(self.starts[user + 1])
            for first in range(start, stop, n_targets):
                known = start + int(np.searchsorted(self.moments[start:stop], self.moments[first]))
                found.append((start, known, first, min(stop, first + n_targets)))
        return np.array(found, dtype=np.int64).reshape(-1, 4)

    def batch(self, rows: Index, *, n_history: int) -> Batch:
        """Some of `rows` as a step of training reads them."""
        sizes = np.minimum(rows[:, 1] - rows[:, 0], n_history)
        age = _counted(sizes)  # 0, 1, .. within each row
        places = np.repeat(rows[:, 1], sizes) - 1 - age
        n_targets = rows[:, 3] - rows[:, 2]
        targets = np.full((len(rows), int(n_targets.max())), -1, dtype=np.int64)
        labels = np.zeros(targets.shape, dtype=np.float32)
        own = np.arange(targets.shape[1]) < n_targets[:, None]
        asked = np.repeat(rows[:, 2], n_targets) + _counted(n_targets)
        targets[own], labels[own] = self.items[asked], self.labels[asked]
        return Batch(
            torch.from_numpy(rows_of(self.items[places], self.liked[places], self.n_items)),
            torch.from_numpy(age.astype(np.float32)),
            torch.from_numpy(np.cumsum(sizes) - sizes),
            torch.from_numpy(self.users[rows[:, 2]]),
            torch.from_numpy(targets),
            torch.from_numpy(labels),
        )

    def level(self) -> float:
        """Log-odds of liked."""
        share = (float(self.liked.sum()) + 0.5) / (len(self.liked) + 1.0)
        return math.log(share / (1.0 - share))

    @cached_property
    def offsets(self) -> Offsets:
        """Of users (U,) and items (N,)."""
        return fit_offsets(self.users, self.items, self.liked, n_users=self.n_users, n_items=self.n_items)

    def item_log_likes(self) -> Floats:
        """ln(1 + likes) of each item, (N,)."""
        return np.log1p(np.bincount(self.items[self.liked], minlength=self.n_items)).astype(np.float32)


def _counted(sizes: Any) -> Any:
    """0 .. n - 1 of each size n, behind each other."""
    return np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
