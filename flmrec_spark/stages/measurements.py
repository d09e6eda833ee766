"""What the models said of what was held out -> the rows of the table `evaluation`.

Every metric is measured on the same rows and users for every model, in every segment. A 95 % interval comes from
resamples of users (`bootstrap`), the same ones throughout, so that a difference of two models is a paired one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flmrec_spark import metrics
from flmrec_spark.bootstrap import Array, Floats, Statistic, interval, mean_over_users, resamples
from flmrec_spark.stages.segments import ALL, HeldOut, Segment, segments

Key = tuple[str, int]  # metric, k
Values = Mapping[Key, tuple[Floats, int]]  # with weights of one and with those of each resample; users measured


@dataclass(frozen=True)
class Answers:
    """What one model said. Counts are scores without being probabilities; a model that cannot list has no hits.

    Lists that were chosen anew from a model's scores have none of their own. K is the length of the lists.
    """

    model: str
    scores: Array | None  # [R]
    probabilities: Array | None  # [R]
    hits: Array | None  # [U, K] 1 + kind of the item at rank j + 1 where it is relevant, else 0
    per_list: Mapping[Key, Floats]  # list_metrics.PER_LIST at each k, [U]
    of_all_lists: Mapping[Key, float]  # list_metrics.OF_ALL_LISTS at each k


@dataclass(frozen=True)
class Measurement:
    """A row of the table `evaluation`, less run and split."""

    model: str
    metric: str
    k: int
    segment: str
    value: float | None
    low: float | None
    high: float | None
    n_users: int


def difference(model: str, baseline: str) -> str:
    """What a paired difference is called in the column `model`."""
    return f"{model} - {baseline}"


def measure(
    world: HeldOut,
    answers: Sequence[Answers],
    *,
    cutoffs: Sequence[int],
    compared: Sequence[tuple[str, str]],
    n_resamples: int,
    seed: int,
) -> list[Measurement]:
    """Every metric of every model and segment, and of each compared pair of models the first less the second.

    Coverage and Gini have no interval, as a resample repeats users and so lists fewer items. What is said of lists
    apart from their hits is said of segments of users alone.
    """
    weights = np.ones((1 + n_resamples, len(world.n_history)))
    resamples(weights.shape[1], n=n_resamples, seed=seed, out=weights[1:])
    found: list[Measurement] = []
    for segment in segments(world):
        part, own = world.only(segment), weights if segment.users.all() else weights[:, segment.users]
        values = {answer.model: dict(_values(part, _only(answer, world, segment), cutoffs, own)) for answer in answers}
        if segment.name == ALL:
            for answer in answers:
                values[answer.model] |= _curve(world, answer, own)
        keys = list(dict.fromkeys(key for of_model in values.values() for key in of_model))
        comparable = [key for key in keys if key[0] not in metrics.CALIBRATION]
        paired = {difference(*pair): _paired(values, *pair) for pair in compared}
        for asked, of_models in ((keys, values), (comparable, paired)):
            found += [
                _measurement(name, key, segment.name, of_models[name].get(key)) for name in of_models for key in asked
            ]
    return found + list(_of_all_lists(answers, n_users=len(world.n_history)))


def pairs(models: Sequence[str], against: str) -> list[tuple[str, str]]:
    """Which models are compared: the first with each other one, and each other one with `against`."""
    first, *others = models
    return [(first, other) for other in others] + [
        (other, against) for other in others if against not in (first, other)
    ]


def _only(answer: Answers, world: HeldOut, segment: Segment) -> Answers:
    rows, hits = world.rows_of(segment), answer.hits
    if hits is not None:
        hits = np.isin(hits[segment.users], np.array(segment.kinds) + 1)
    return Answers(
        answer.model,
        None if answer.scores is None else answer.scores[rows],
        None if answer.probabilities is None else answer.probabilities[rows],
        hits,
        {key: each[segment.users] for key, each in answer.per_list.items()} if segment.is_of_users else {},
        {},
    )


def _values(
    part: HeldOut, answer: Answers, cutoffs: Sequence[int], weights: Floats
) -> Iterator[tuple[Key, tuple[Floats, int]]]:
    n_users = len(part.n_history)
    rows, likes = (np.bincount(part.users, weights=each, minlength=n_users) for each in (None, part.labels))
    on_rows = {}
    if answer.scores is not None:
        on_rows = metrics.pointwise(
            part.users, part.labels, answer.scores, probabilities=answer.probabilities, n_users=n_users
        )
    for name, statistic in on_rows.items():
        who = (likes > 0) & (likes < rows) if name == "uauc" else rows > 0
        yield (name, 0), (_applied(statistic, weights), int(who.sum()))
    if answer.hits is not None:
        for k in (k for k in cutoffs if k <= answer.hits.shape[1]):
            for name, metric in metrics.LIST_METRICS.items():
                statistic = mean_over_users(metric(answer.hits, part.n_relevant, k=k))
                yield (name, k), (_applied(statistic, weights), int((part.n_relevant > 0).sum()))
    for key, each in answer.per_list.items():
        yield key, (_applied(mean_over_users(each), weights), int((~np.isnan(each)).sum()))


def _curve(world: HeldOut, answer: Answers, weights: Floats) -> dict[Key, tuple[Floats, int]]:
    if answer.probabilities is None:
        return {}
    n_users = len(world.n_history)
    curve = metrics.calibration_curve(world.users, world.labels, answer.probabilities, n_users=n_users)
    n_measured = len(np.unique(world.users))
    return {key: (_applied(statistic, weights), n_measured) for key, statistic in curve.items()}


def _applied(statistic: Statistic, weights: Floats) -> Floats:
    return statistic(weights) if weights.shape[1] else np.full(len(weights), np.nan)


def _paired(values: Mapping[str, Values], model: str, baseline: str) -> dict[Key, tuple[Floats, int]]:
    ours, theirs = values[model], values[baseline]
    return {
        key: (ours[key][0] - theirs[key][0], min(ours[key][1], theirs[key][1])) for key in ours.keys() & theirs.keys()
    }


def _measurement(model: str, key: Key, segment: str, found: tuple[Floats, int] | None) -> Measurement:
    value, low, high, n_users = float("nan"), float("nan"), float("nan"), 0
    if found is not None:
        values, n_users = found
        value = float(values[0])
        if n_users > 1:  # the resamples of one user are all the same
            low, high = interval(values[1:])
    return Measurement(model, *key, segment, _or_null(value), _or_null(low), _or_null(high), n_users)


def _of_all_lists(answers: Sequence[Answers], *, n_users: int) -> Iterator[Measurement]:
    keys = list(dict.fromkeys(key for answer in answers for key in answer.of_all_lists))
    for answer in answers:
        for key in keys:
            value = answer.of_all_lists.get(key, float("nan"))
            yield Measurement(answer.model, *key, ALL, _or_null(value), None, None, n_users)


def _or_null(value: float) -> float | None:
    return None if np.isnan(value) else value
