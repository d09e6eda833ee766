"""The bootstrap over users: what a resample is, and how wide its intervals are."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from flmrec_spark import metrics
from flmrec_spark.bootstrap import interval, mean_over_users, resamples


def test_a_resample_draws_as_many_users_as_there_are_and_its_seed_repeats_it() -> None:
    drawn = resamples(7, n=5, seed=3)
    assert drawn.shape == (5, 7)
    assert drawn.sum(axis=1).tolist() == [7.0] * 5
    assert (drawn == resamples(7, n=5, seed=3)).all()
    assert (drawn != resamples(7, n=5, seed=4)).any()


def test_the_interval_of_a_mean_is_near_its_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(size=400)
    low, high = interval(mean_over_users(values)(resamples(400, n=2000, seed=1)))
    half = 1.96 * values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_paired_resamples_narrow_the_interval_of_a_difference() -> None:
    random = np.random.default_rng(1)
    common = random.normal(size=300)
    ours, theirs = mean_over_users(common + 0.1), mean_over_users(common + random.normal(scale=0.1, size=300))
    drawn = resamples(300, n=200, seed=1)
    low, high = interval(ours(drawn) - theirs(drawn))
    assert high - low < 0.05 < 0.2 < np.ptp(interval(ours(drawn)))


def test_the_mean_leaves_out_users_without_a_value() -> None:
    assert mean_over_users(np.array([1.0, math.nan, 3.0]))(np.array([[1.0, 9.0, 3.0]])) == (1 + 3 * 3) / 4


def test_there_is_no_interval_when_too_many_resamples_leave_the_metric_undefined() -> None:
    assert interval(np.array([0.5] * 95 + [math.nan] * 5)) == (0.5, 0.5)
    assert all(map(math.isnan, interval(np.array([0.5] * 94 + [math.nan] * 6))))
    assert all(map(math.isnan, interval(np.array([]))))


def test_two_hundred_resamples_of_ten_thousand_rows_take_under_a_few_seconds() -> None:
    random = np.random.default_rng(1)
    users, labels, scores = random.integers(0, 1000, 10_000), random.random(10_000) < 0.5, random.random(10_000)
    started = time.perf_counter()
    drawn = resamples(1000, n=200, seed=1)
    found = metrics.pointwise(users, labels, scores, probabilities=scores, n_users=1000)
    for statistic in found.values():
        statistic(drawn)
    assert time.perf_counter() - started < 5
