"""A stack: logistic regression on what several models say of the same pairs.

The parts' scores (log-odds of those that give probabilities) are standardised; a part that knows nothing of a user
(nan) says the mean. Shapes: R pairs, M parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flmrec_spark import metrics
from flmrec_spark.errors import InputError
from flmrec_spark.stages.baselines.world import Floats

MAX_ITERATIONS = 1000
_K = 10  # cut-off of the lists that a stack is made for
_ROUNDING = 1e-9  # deviation of a constant, in units of itself


@dataclass(frozen=True)
class Stacker:
    center: Floats  # [M]
    scale: Floats  # [M]
    weights: Floats  # [M]
    intercept: float

    def probability(self, features: Floats) -> Floats:
        """(R, M) -> (R,) in [0, 1]."""
        logits = standardised(features, self.center, self.scale) @ self.weights + self.intercept
        return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))


def fit(features: Floats, labels: Any, *, weights: Any = None) -> Stacker:
    """Features (R, M), labels bool (R,), weights of the rows (R,).

    Raises:
      InputError: the labels are all the same.
    """
    from sklearn.linear_model import LogisticRegression  # here: seconds to import, and not every run fits one

    if len(np.unique(labels)) < 2:
        raise InputError(f"hybrid: got {len(labels)} rows of one label, expected both in split valid")
    has_any = ~np.isnan(features).all(axis=0)
    center, deviation = np.zeros(features.shape[1]), np.ones(features.shape[1])
    center[has_any] = np.nanmean(features[:, has_any], axis=0)
    deviation[has_any] = np.nanstd(features[:, has_any], axis=0)
    # A constant's deviation may be its rounding, by which any other value would be divided into a certainty.
    scale = np.where(deviation > _ROUNDING * np.maximum(1.0, np.abs(center)), deviation, 1.0)
    model = LogisticRegression(max_iter=MAX_ITERATIONS)
    model.fit(standardised(features, center, scale), labels, sample_weight=weights)
    return Stacker(center, scale, model.coef_[0].astype(np.float64), float(model.intercept_[0]))


def fit_for_lists(features: Floats, relevant: Any, users: Any, lists: Lists | None = None) -> Stacker:
    """As `fit`, each side of a user (R,) weighing 1, of the parts that lists need: backward elimination.

    Left out are parts that count backwards and, where there are `lists`, one after the other those without which their
    NDCG@10 is no lower. What tells the liked from items drawn at random may spoil the first places, and a stack
    should not be worse than its best part.

    Raises:
      InputError: as `fit`.
    """
    weights = even_weights(users, relevant)

    def fitted(places: list[int]) -> tuple[Stacker, float]:
        own = fit(features[:, places], relevant, weights=weights)
        forwards = [place for place, weight in zip(places, own.weights, strict=True) if weight >= 0]
        if 0 < len(forwards) < len(places):
            return fitted(forwards)
        whole = Stacker(np.zeros(features.shape[1]), np.ones(features.shape[1]), np.zeros(features.shape[1]), 0.0)
        for name in ("center", "scale", "weights"):
            getattr(whole, name)[places] = getattr(own, name)
        whole = replace(whole, intercept=own.intercept)
        return whole, ndcg(whole)

    def ndcg(stack: Stacker) -> float:
        return math.nan if lists is None else lists.ndcg(stack)

    def without(stack: Stacker, place: int) -> Stacker:
        return replace(stack, weights=np.where(np.arange(len(stack.weights)) == place, 0.0, stack.weights))

    found, top = fitted(list(range(features.shape[1])))
    if not top > 0:  # without lists, or without a hit: nothing tells the parts apart
        return found
    while len(left := np.flatnonzero(found.weights).tolist()) > 1:
        least = max(left, key=lambda place: ndcg(without(found, place)))
        less, value = fitted([place for place in left if place != least])
        if not value >= top:
            break
        found, top = less, value
    return found


@dataclass(frozen=True)
class Lists:
    """All that the list of each of U users could hold, what is not relevant first: of equal scores it stands first."""

    features: Floats  # (R, M)
    rows: Any  # (U, W) places of rows
    is_row: Any  # (U, W) false for the filling
    relevant: Any  # (U, W)

    @classmethod
    def of(cls, features: Floats, relevant: Any, users: Any) -> Lists:
        """Of rows (R,) in any order; users are codes."""
        order = np.lexsort((relevant, users))
        _, sizes = np.unique(users, return_counts=True)
        is_row = np.arange(sizes.max()) < sizes[:, None]
        rows = np.zeros(is_row.shape, dtype=np.intp)
        rows[is_row] = order
        return cls(features, rows, is_row, np.asarray(relevant)[rows] & is_row)

    def ndcg(self, stack: Stacker) -> float:
        """Mean NDCG@10 of users with something relevant; nan without any."""
        filled = np.where(self.is_row, stack.probability(self.features)[self.rows], -np.inf)
        top = np.argsort(-filled, axis=1, kind="stable")[:, :_K]
        hits = np.take_along_axis(self.relevant, top, axis=1)
        found = metrics.ndcg(hits, self.relevant.sum(1), k=_K)
        return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")


def standardised(features: Floats, center: Floats, scale: Floats) -> Floats:
    return np.nan_to_num((features - center) / scale, nan=0.0)


def even_weights(users: Any, labels: Any) -> Floats:
    """Rows' weights by which every user's positive rows weigh 1, and their negative ones (R,); users are codes."""
    groups = users * 2 + labels
    return np.asarray(1.0 / np.bincount(groups)[groups])
