"""A stack: logistic regression on what several models say of the same pairs.

The parts' scores (log-odds of those that give probabilities) are standardised; a part that knows nothing of a user
(nan) says the mean. Shapes: R pairs, M parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flmrec_spark.errors import InputError
from flmrec_spark.stages.baselines.world import Floats

MAX_ITERATIONS = 1000
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


def standardised(features: Floats, center: Floats, scale: Floats) -> Floats:
    return np.nan_to_num((features - center) / scale, nan=0.0)


def even_weights(users: Any, labels: Any) -> Floats:
    """Rows' weights by which every user's positive rows weigh 1, and their negative ones (R,); users are codes."""
    groups = users * 2 + labels
    return np.asarray(1.0 / np.bincount(groups)[groups])
