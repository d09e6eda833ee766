"""A stack: logistic regression on what several models say of the same pairs.

The parts' scores (log-odds of those that give probabilities) are standardised; a part that knows nothing of a user
(nan) says the mean. Shapes: R pairs, M parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flmrec_spark import metrics, ranking
from flmrec_spark.elimination import without_idle
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
    """As `fit`, each side of a user (R,) weighing 1, of the parts that lists need.

    Left out are parts that count backwards and, where there are `lists`, one after the other those without which their
    NDCG@10 is no lower. What tells the liked from items drawn at random may spoil the first places, and a stack
    should not be worse than its best part.

    Raises:
      InputError: as `fit`.
    """
    weights, every = even_weights(users, relevant), frozenset(range(features.shape[1]))

    def forwards(parts: frozenset[int]) -> Stacker:
        places = sorted(parts)
        own = fit(features[:, places], relevant, weights=weights)
        kept = frozenset(place for place, weight in zip(places, own.weights, strict=True) if weight >= 0)
        if kept and kept < parts:
            return forwards(kept)
        if not kept:  # all say the opposite of what they should, and the one that does so least is all there is
            weights_of = np.where(np.arange(len(places)) == int(own.weights.argmax()), 1.0, 0.0)
            own = replace(own, weights=weights_of, intercept=0.0)
        spread = (np.zeros(len(every)), np.ones(len(every)), np.zeros(len(every)))
        for whole, part in zip(spread, (own.center, own.scale, own.weights), strict=True):
            whole[places] = part
        return Stacker(*spread, own.intercept)

    if lists is None:
        return forwards(every)

    def less_missed(stack: Stacker, _: frozenset[int]) -> list[frozenset[int]]:
        """The parts that weigh, less the one that is missed least before the others are fitted anew: a fit is slow."""
        left = np.flatnonzero(stack.weights).tolist()
        if len(left) < 2:
            return []
        without = {place: np.where(np.arange(len(every)) == place, 0.0, stack.weights) for place in left}
        least = max(left, key=lambda place: lists.ndcg(replace(stack, weights=without[place])))
        return [frozenset(left) - {least}]

    found = without_idle(forwards, lists.ndcg, every, less_missed)
    assert found is not None
    return found


@dataclass(frozen=True)
class Lists:
    """All that the list of each of U users could hold, what is not relevant first: of equal scores it stands first."""

    features: Floats  # (R, M)
    rows: Sequence[Any]  # places of a user's rows
    relevant: Sequence[Any]  # places in them

    @classmethod
    def of(cls, features: Floats, relevant: Any, users: Any) -> Lists:
        """Of rows (R,) in any order; users are codes."""
        order = np.lexsort((relevant, users))
        rows = np.split(order, np.flatnonzero(np.diff(users[order])) + 1)
        return cls(features, rows, [np.flatnonzero(np.asarray(relevant)[own]) for own in rows])

    def ndcg(self, stack: Stacker) -> float:
        """Mean NDCG@10 of users with something relevant; nan without any."""
        scores = stack.probability(self.features)
        return metrics.mean(ranking.ndcg([ranking.best(scores[own], _K) for own in self.rows], self.relevant, k=_K))


def standardised(features: Floats, center: Floats, scale: Floats) -> Floats:
    return np.nan_to_num((features - center) / scale, nan=0.0)


def even_weights(users: Any, labels: Any) -> Floats:
    """Rows' weights by which every user's positive rows weigh 1, and their negative ones (R,); users are codes."""
    groups = users * 2 + labels
    return np.asarray(1.0 / np.bincount(groups)[groups])
