"""Where bias terms start: how much each user likes, and how much each item is liked, told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_ROUNDS, _TOLERANCE = 100, 1e-4
_LONGEST_STEP = 1.0  # within which a curvature changes by a factor of e at most, so that Newton's steps end
_LEAST_VARIANCE, _MOST_VARIANCE = 1e-3, 10.0

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Offsets:
    """What `fit_offsets` found, in log-odds."""

    user: Floats  # (U,)
    item: Floats  # (N,)
    level: float  # of all
    variances: tuple[float, float]  # of users' offsets and of items'


def fit_offsets(users: Any, items: Any, liked: Any, *, n_users: int, n_items: int) -> Offsets:
    """Offsets of users and items that together make the rows (R,) most likely.

        log-odds of liked = level + user + item,    user ~ Normal(0, v of users), item ~ Normal(0, v of items)

    So a user who met nothing but what everybody likes is not taken for one who likes everything (the model of Rasch
    1960). The variances are learned with the offsets, from the offsets and how sure these are (empirical Bayes by EM on
    Laplace's approximation: Breslow and Clayton 1993): where users hardly differ, none is told from another by chance.
    Found by Newton's steps for all items, then all users, in turns. An id without rows has 0; where all rows are liked,
    half a row on each side keeps the level finite.
    """
    users, items = np.asarray(users, dtype=np.int64), np.asarray(items, dtype=np.int64)
    labels = np.asarray(liked, dtype=np.float64)
    sides = [_Side(items, n_items), _Side(users, n_users)]
    level = float(np.log((labels.sum() + 0.5) / (len(labels) - labels.sum() + 0.5)))
    for _ in range(_ROUNDS):
        middle = _share(level)
        error, weight = _residuals(level, sides, labels)
        change = float(_step(error.sum() + 0.5 - middle, weight.sum() + middle * (1.0 - middle)))
        level += change
        moved = [abs(change), *(side.move(*_residuals(level, sides, labels)) for side in sides)]
        if max(moved) < _TOLERANCE:
            break
    item, user = sides
    offsets = user.offsets.astype(np.float32), item.offsets.astype(np.float32)
    return Offsets(*offsets, level, (user.variance, item.variance))


class _Side:
    """The users, or the items."""

    def __init__(self, places: Any, n: int) -> None:
        self.places, self.offsets, self.variance = places, np.zeros(n), 1.0
        self.is_met = np.bincount(places, minlength=n) > 0

    def move(self, error: Any, weight: Any) -> float:
        """One step of all offsets and of their variance; returns how far the furthest went."""
        n, penalty = len(self.offsets), 1.0 / self.variance
        curvature = np.bincount(self.places, weight, n) + penalty
        moved = _step(np.bincount(self.places, error, n) - penalty * self.offsets, curvature)
        self.offsets += moved
        if self.is_met.any():
            spread = float((self.offsets**2 + 1.0 / curvature)[self.is_met].mean())
            self.variance = min(max(spread, _LEAST_VARIANCE), _MOST_VARIANCE)
        return float(np.abs(moved).max(initial=0.0))


def _share(log_odds: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-log_odds))


def _residuals(level: float, sides: Sequence[_Side], labels: Any) -> tuple[Any, Any]:
    share = _share(level + sum(side.offsets[side.places] for side in sides))
    return labels - share, share * (1.0 - share)


def _step(gradient: Any, curvature: Any) -> Any:
    return np.clip(gradient / curvature, -_LONGEST_STEP, _LONGEST_STEP)
