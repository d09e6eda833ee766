"""A stack: how well several models tell the same pairs apart, added up.

Their scores (log-odds of those that give probabilities) are standardised; a part that knows nothing of a user (nan)
says the mean. Shapes: R pairs, M parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize

from flmrec_spark.errors import InputError
from flmrec_spark.stages.baselines.world import Floats

MAX_ITERATIONS = 1000
RIDGE = 0.02  # of a listing's weights, per user
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


def fit(features: Floats, labels: Any) -> Stacker:
    """Logistic regression; features (R, M), labels bool (R,).

    Raises:
      InputError: the labels are all the same.
    """
    from sklearn.linear_model import LogisticRegression  # here: seconds to import, and not every run fits one

    if len(np.unique(labels)) < 2:
        raise InputError(f"hybrid: got {len(labels)} rows of one label, expected both in split valid")
    center, scale = _spread(features)
    model = LogisticRegression(max_iter=MAX_ITERATIONS)
    model.fit(standardised(features, center, scale), labels)
    return Stacker(center, scale, model.coef_[0].astype(np.float64), float(model.intercept_[0]))


def fit_for_lists(features: Floats, relevant: Any, users: Any) -> Stacker:
    """Weights that set the relevant items of a user apart from all others that their list could hold.

    A conditional logit (McFadden, 1974): of the softmax over a user's items, what is relevant should have the largest
    mean log. A user weighs 1, a part at least 0, so that none counts backwards, and RIDGE keeps weights from resting on
    the part that is best by a hair: models that err differently list better together. The intercept is that of a
    logistic regression on these sums in which the relevant items of a user weigh 1, and the others too.

    Args:
      features: (R, M), of items that may stand in a user's first places.
      relevant: bool (R,).
      users: codes (R,), in any order.

    Raises:
      InputError: nothing is relevant.
    """
    is_asked = np.isin(users, users[relevant])
    if not is_asked.any():
        raise InputError("hybrid: got no liked item that a list could hold, expected some in split valid")
    order = np.flatnonzero(is_asked)[np.argsort(users[is_asked], kind="stable")]
    starts = np.flatnonzero(np.diff(users[order], prepend=users[order[0]] - 1))
    own = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(order)))  # whose a row is
    center, scale = _spread(features[order])
    values, is_relevant = standardised(features[order], center, scale), relevant[order]
    target = is_relevant / np.add.reduceat(is_relevant, starts)[own]

    def loss(weights: Floats) -> tuple[float, Floats]:
        sums = values @ weights
        top = np.maximum.reduceat(sums, starts)
        shares = np.exp(sums - top[own])
        total = np.add.reduceat(shares, starts)
        penalty = RIDGE * len(starts)
        value = (np.log(total) + top).sum() - target @ sums + penalty * (weights @ weights)
        return float(value), values.T @ (shares / total[own] - target) + 2 * penalty * weights

    n_parts = values.shape[1]
    found = optimize.minimize(
        loss, np.full(n_parts, 0.1), jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * n_parts
    ).x
    return Stacker(center, scale, found, _intercept(values @ found, is_relevant, even_weights(own, is_relevant)))


def one_part(features: Floats, place: int) -> Stacker:
    """A stack that says what one part says; features (R, M) tell how far apart its values lie."""
    center, scale = _spread(features)
    return Stacker(center, scale, np.where(np.arange(features.shape[1]) == place, 1.0, 0.0), 0.0)


def _intercept(sums: Floats, relevant: Any, weights: Floats) -> float:
    """Where the weighted probabilities add up to the weighted labels; 0 where all labels are the same."""
    if relevant.all():
        return 0.0
    far = float(np.abs(sums).max()) + 50.0

    def excess(intercept: float) -> float:
        return float(weights @ (np.exp(-np.logaddexp(0.0, -sums - intercept)) - relevant))

    return float(optimize.brentq(excess, -far, far))


def _spread(features: Floats) -> tuple[Floats, Floats]:
    """Center and scale of each part, [M]; of one that is constant or never known 1."""
    has_any = ~np.isnan(features).all(axis=0)
    center, deviation = np.zeros(features.shape[1]), np.ones(features.shape[1])
    center[has_any] = np.nanmean(features[:, has_any], axis=0)
    deviation[has_any] = np.nanstd(features[:, has_any], axis=0)
    # A constant's deviation may be its rounding, by which any other value would be divided into a certainty.
    return center, np.where(deviation > _ROUNDING * np.maximum(1.0, np.abs(center)), deviation, 1.0)


def standardised(features: Floats, center: Floats, scale: Floats) -> Floats:
    return np.nan_to_num((features - center) / scale, nan=0.0)


def even_weights(users: Any, labels: Any) -> Floats:
    """Rows' weights by which every user's positive rows weigh 1, and their negative ones (R,); users are codes."""
    groups = users * 2 + labels
    return np.asarray(1.0 / np.bincount(groups)[groups])
