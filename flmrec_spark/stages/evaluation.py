"""Held-out interactions -> how well each model knew them.

Two questions, each asked of every model on the same rows and users. Pointwise: is a held-out item of the user
liked? Top-n: do the items that the user went on to like stand high in a list made from the whole catalogue?
The Spark part chooses rows and users and finds the hits; what it collects (`measure`) is bounded by
evaluate.max_users. A prompt's history is frozen at the history splits, as in a nightly refresh.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark import metrics
from flmrec_spark.bootstrap import Array, Floats, Statistic, interval, mean_over_users, resamples
from flmrec_spark.stages.user_prompts import with_candidates

MODEL, IS_SEEN, N_RELEVANT = "model", "is_seen", "n_relevant"
ALL, WARM_USERS, COLD_USERS = "all", "warm users", "cold users"
COVERAGE = "coverage"

Key = tuple[str, int]  # metric, k


@dataclass(frozen=True)
class HeldOut:
    """What was held out: R rows of U users. `segments` are masks of the users."""

    users: Array  # [R] 0 .. U - 1
    labels: Array  # [R] liked
    n_relevant: Array  # [U] liked items that a list could hold
    segments: Mapping[str, Array]  # name -> [U]


@dataclass(frozen=True)
class Answers:
    """What one model said. Counts are scores without being probabilities; a model that cannot list has no hits."""

    model: str
    scores: Array  # [R]
    probabilities: Array | None  # [R]
    hits: Array | None  # [U, K] is the item at rank j + 1 relevant; False where there is none
    n_listed: Mapping[int, int]  # k -> distinct items in the first k of all lists


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


def draw_users(interactions: DataFrame, *, split: str, max_users: int, seed: int) -> DataFrame:
    """user_id of at most `max_users` users who have rows in the split; the same ones for the same seed."""
    users = interactions.where(F.col(c.SPLIT) == split).select(c.USER_ID).distinct()
    return users.orderBy(F.xxhash64(F.lit(seed), c.USER_ID), c.USER_ID).limit(max_users)


def held_out(interactions: DataFrame, users: DataFrame, *, split: str, history_splits: Sequence[str]) -> DataFrame:
    """The users' rows of the split: user_id, item_id, moment, is_liked, is_seen (the pair is in the history too)."""
    seen = interactions.where(F.col(c.SPLIT).isin(*history_splits)).select(c.USER_ID, c.ITEM_ID).distinct()
    return (
        interactions.where(F.col(c.SPLIT) == split)
        .join(users, c.USER_ID, "left_semi")
        .join(seen.withColumn(IS_SEEN, F.lit(True)), [c.USER_ID, c.ITEM_ID], "left")
        .select(c.USER_ID, c.ITEM_ID, c.MOMENT, c.IS_LIKED, F.coalesce(IS_SEEN, F.lit(False)).alias(IS_SEEN))
    )


def relevant_items(rows: DataFrame) -> DataFrame:
    """user_id, item_id: held-out items that the user liked and that a list without seen items can hold."""
    return rows.where(F.col(c.IS_LIKED) & ~F.col(IS_SEEN)).select(c.USER_ID, c.ITEM_ID).distinct()


def pointwise_prompts(prompts: DataFrame, rows: DataFrame) -> DataFrame:
    """The prompts, asked about the user's held-out items alone, seen or not."""
    return with_candidates(prompts, rows).withColumn(c.EXCLUDED, F.array().cast("array<string>"))


def measured_users(prompts: DataFrame, relevant: DataFrame) -> DataFrame:
    """user_id, has_history, n_relevant: one row per user."""
    counts = relevant.groupBy(c.USER_ID).agg(F.count("*").alias(N_RELEVANT))
    return (
        prompts.select(c.USER_ID, (F.size(c.HISTORY) > 0).alias(c.HAS_HISTORY))
        .join(counts, c.USER_ID, "left")
        .na.fill({N_RELEVANT: 0})
    )


def hits(lists: DataFrame, relevant: DataFrame) -> DataFrame:
    """model, user_id, rank of every listed item that is relevant."""
    return lists.join(relevant, [c.USER_ID, c.ITEM_ID], "inner").select(MODEL, c.USER_ID, c.RANK)


def listed(lists: DataFrame, cutoffs: Sequence[int]) -> DataFrame:
    """model, users (with a list), and for each k the distinct items in the first k of all lists, in column `k`."""
    within = [F.count_distinct(F.when(F.col(c.RANK) <= k, F.col(c.ITEM_ID))).alias(str(k)) for k in cutoffs]
    return lists.groupBy(MODEL).agg(F.count_distinct(c.USER_ID).alias("users"), *within)


def held_out_arrays(rows: pa.Table, users: pa.Table) -> HeldOut:
    """Collected rows (user_id, is_liked) and `measured_users` as arrays; a user's code is their place in `users`."""
    has_history = users[c.HAS_HISTORY].to_numpy()
    return HeldOut(
        users=user_codes(rows, users),
        labels=rows[c.IS_LIKED].to_numpy(),
        n_relevant=users[N_RELEVANT].to_numpy(),
        segments={ALL: np.ones(len(has_history), dtype=bool), WARM_USERS: has_history, COLD_USERS: ~has_history},
    )


def user_codes(rows: pa.Table, users: pa.Table) -> Array:
    codes: Array = pc.index_in(rows[c.USER_ID], value_set=users[c.USER_ID].combine_chunks()).to_numpy()
    return codes.astype(np.int64)


def hit_matrix(found: pa.Table, users: pa.Table, *, model: str, n: int) -> Array:
    """Collected `hits` of one model, [U, n]."""
    own = found.filter(pc.equal(found[MODEL], model))
    matrix = np.zeros((users.num_rows, n), dtype=bool)
    matrix[user_codes(own, users), own[c.RANK].to_numpy() - 1] = True
    return matrix


def measure(
    world: HeldOut, answers: Sequence[Answers], *, cutoffs: Sequence[int], n_items: int, n_resamples: int, seed: int
) -> list[Measurement]:
    """Every metric of every model and segment, and what the first model's differ from each other's.

    Intervals are over the same resamples of users throughout; coverage has none, as a resample repeats users
    and so lists fewer items.
    """
    statistics = {answer.model: _statistics(world, answer, cutoffs) for answer in answers}
    drawn = resamples(len(world.n_relevant), n=n_resamples, seed=seed)
    weights = np.vstack([np.ones((1, drawn.shape[1])), drawn])
    first, *others = statistics
    found = []
    for segment, members in world.segments.items():
        values = {
            model: {key: statistic(weights * members) for key, statistic in of_model.items()}
            for model, of_model in statistics.items()
        }
        for other in others:
            shared = values[first].keys() & values[other].keys()
            values[difference(first, other)] = {key: values[first][key] - values[other][key] for key in shared}
        counts = {key: int((who & members).sum()) for key, who in _who_counts(world, cutoffs).items()}
        found += [
            _measurement(model, key, segment, of_model.get(key), n_users=n_users)
            for model, of_model in values.items()
            for key, n_users in counts.items()
        ]
    return found + list(_coverage(answers, cutoffs, n_items=n_items, n_users=len(world.n_relevant)))


def _statistics(world: HeldOut, answer: Answers, cutoffs: Sequence[int]) -> dict[Key, Statistic]:
    n_users = len(world.n_relevant)
    on_rows = metrics.pointwise(
        world.users, world.labels, answer.scores, probabilities=answer.probabilities, n_users=n_users
    )
    found: dict[Key, Statistic] = {(name, 0): statistic for name, statistic in on_rows.items()}
    if answer.hits is not None:
        for k in cutoffs:
            for name, metric in metrics.LIST_METRICS.items():
                found[name, k] = mean_over_users(metric(answer.hits, world.n_relevant, k=k))
    return found


def _who_counts(world: HeldOut, cutoffs: Sequence[int]) -> dict[Key, Array]:
    """Users that each metric is measured on, [U]."""
    n_users = len(world.n_relevant)
    rows = np.bincount(world.users, minlength=n_users)
    likes = np.bincount(world.users, weights=world.labels, minlength=n_users)
    who: dict[Key, Array] = {(name, 0): rows > 0 for name in metrics.POINTWISE}
    who["uauc", 0] = (likes > 0) & (likes < rows)
    return who | {(name, k): world.n_relevant > 0 for k in cutoffs for name in metrics.LIST_METRICS}


def _measurement(model: str, key: Key, segment: str, values: Floats | None, *, n_users: int) -> Measurement:
    value, low, high = float("nan"), float("nan"), float("nan")
    if values is not None:
        value = float(values[0])
        if n_users > 1:  # the resamples of one user are all the same
            low, high = interval(values[1:])
    return Measurement(model, *key, segment, _or_null(value), _or_null(low), _or_null(high), n_users)


def _coverage(
    answers: Sequence[Answers], cutoffs: Sequence[int], *, n_items: int, n_users: int
) -> Iterator[Measurement]:
    for answer in answers:
        for k in cutoffs:
            value = metrics.coverage(answer.n_listed.get(k, 0), n_items) if answer.hits is not None else float("nan")
            yield Measurement(answer.model, COVERAGE, k, ALL, _or_null(value), None, None, n_users)


def _or_null(value: float) -> float | None:
    return None if np.isnan(value) else value
