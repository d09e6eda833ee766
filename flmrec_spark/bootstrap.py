"""How sure a metric is: bootstrap over users.

A Statistic is a metric as a function of user weights, [B, U] -> [B]. Weights of one give the metric, weights
of 0 and 1 the metric of a segment, and counts of a resample give its distribution over users: a user is drawn
with all of their rows. The same resamples for two models give the distribution of their paired difference.

Shapes: U users, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], Floats]

MAX_UNDEFINED = 0.05  # share of resamples without a value above which there is no interval


def ratio(numerator: Array, denominator: Array) -> Statistic:
    """Sum over users of one per-user quantity [U] / sum of another; nan when the latter is 0."""
    return lambda weights: divide(weights @ numerator, weights @ denominator)


def mean_over_users(values: Floats) -> Statistic:
    """The mean of per-user values [U]; users with nan are left out."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0), defined)


def resamples(n_users: int, *, n: int, seed: int, out: Floats | None = None) -> Floats:
    """How often each user is drawn in each of n resamples, [n, U], in `out` if given; every row sums to U."""
    random = np.random.default_rng(seed)
    counts = np.empty((n, n_users)) if out is None else out
    for row in counts:
        row[:] = np.bincount(random.integers(0, n_users, size=n_users), minlength=n_users)
    return counts


def interval(values: Floats) -> tuple[float, float]:
    """Percentile 95 % interval of a resampled metric [B]; nan when over 5 % of the resamples leave it undefined."""
    defined = values[~np.isnan(values)]
    if not len(defined) or len(defined) < (1 - MAX_UNDEFINED) * len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


def divide(numerator: Array, denominator: Array) -> Floats:
    """Element by element; nan where the denominator is 0."""
    quotient: Floats = np.full(np.broadcast(numerator, denominator).shape, np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator != 0)
    return quotient
