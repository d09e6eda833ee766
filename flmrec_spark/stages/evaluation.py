"""Held-out interactions and the models' answers, chosen in Spark and collected as bounded arrays.

Two questions, each asked of every model on the same rows and users. Pointwise: is a held-out item of the user
liked? Top-n: do the items that the user went on to like stand high in a list made from the whole catalogue?
What is collected is bounded by evaluate.max_users, their held-out rows, and the catalogue. A prompt's history is
frozen at the history splits, as in a nightly refresh.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from scipy import sparse

from flmrec_spark import columns as c
from flmrec_spark import list_metrics
from flmrec_spark.bootstrap import Array, Floats
from flmrec_spark.stages.baselines.content import TOKEN
from flmrec_spark.stages.measurements import Answers, Key
from flmrec_spark.stages.segments import COLD, KINDS, HeldOut, item_kinds
from flmrec_spark.stages.user_prompts import with_candidates

IS_SEEN, N_HISTORY, TEXT = "is_seen", "n_history", "text"


@dataclass(frozen=True)
class Catalogue:
    """I items in the order of their ids."""

    ids: pa.StringArray  # [I]
    counts: Array  # [I] interactions in the history
    kinds: Array  # [I] see `segments`
    features: Any  # sparse [I, T], rows of length 1 or 0: TF-IDF of title and attributes


@dataclass(frozen=True)
class Collected:
    """What every model is asked."""

    world: HeldOut
    items: Catalogue
    user_ids: pa.ChunkedArray  # [U]
    relevant: Array  # user * I + item of the items that a list is to find


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


def relevant_items(rows: DataFrame, *, exclude_seen: bool) -> DataFrame:
    """user_id, item_id: held-out items that the user liked and that a list can hold."""
    can_list = ~F.col(IS_SEEN) if exclude_seen else F.lit(True)
    return rows.where(F.col(c.IS_LIKED) & can_list).select(c.USER_ID, c.ITEM_ID).distinct()


def without_lists(prompts: DataFrame) -> DataFrame:
    """The prompts without a candidate: of their users nothing is asked but the items of c.HELD."""
    return prompts.withColumn(c.CANDIDATES, F.array().cast("array<string>"))


def pointwise_prompts(prompts: DataFrame, rows: DataFrame) -> DataFrame:
    """The prompts, asked about the user's held-out items alone, seen or not."""
    return with_candidates(prompts, rows).withColumn(c.EXCLUDED, F.array().cast("array<string>"))


def beside_lists(prompts: DataFrame, rows: DataFrame) -> DataFrame:
    """The prompts with the user's held-out items as those of c.HELD."""
    held = rows.groupBy(c.USER_ID).agg(F.array_sort(F.collect_set(c.ITEM_ID)).alias(c.HELD))
    return prompts.join(held, c.USER_ID, "left")


def measured_users(prompts: DataFrame, history: DataFrame) -> DataFrame:
    """user_id, n_history: one row per user, also for those without history."""
    counts = history.groupBy(c.USER_ID).agg(F.count("*").alias(N_HISTORY))
    return prompts.select(c.USER_ID).join(counts, c.USER_ID, "left").na.fill({N_HISTORY: 0})


def catalogue_rows(items: DataFrame, history: DataFrame) -> DataFrame:
    """item_id, n_history, text: one row per item, the text being its title and attributes."""
    counts = history.groupBy(c.ITEM_ID).agg(F.count("*").alias(N_HISTORY))
    shown = [F.col(f"`{name}`").cast("string") for name in items.columns if name != c.ITEM_ID]
    text = items.select(c.ITEM_ID, F.concat_ws(" ", *shown).alias(TEXT))
    return text.join(counts, c.ITEM_ID, "left").na.fill({N_HISTORY: 0})


def catalogue(rows: pa.Table) -> Catalogue:
    """Collected `catalogue_rows`. Words as those of the baseline `content_tfidf`, a letter alone one too."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # here: seconds to import, and not every run fits one

    rows = rows.sort_by(c.ITEM_ID)
    counts = rows[N_HISTORY].to_numpy()
    texts = rows[TEXT].to_pylist()
    words = TfidfVectorizer(token_pattern=TOKEN, dtype=np.float32)
    try:
        features = words.fit_transform(texts)
    except ValueError:  # no text has a word: then no item is like another
        features = sparse.csr_matrix((len(texts), 1), dtype=np.float32)
    return Catalogue(rows[c.ITEM_ID].combine_chunks(), counts, item_kinds(counts), features)


def collected(rows: pa.Table, relevant: pa.Table, users: pa.Table, items: Catalogue) -> Collected:
    """Collected rows (user_id, item_id, is_liked), `relevant_items` and `measured_users` as arrays.

    A user's code is their place in `users`. An item that is not in the catalogue counts as a cold one.
    """
    counted = np.zeros((users.num_rows, len(KINDS)), dtype=np.int64)
    user, item = _codes(relevant[c.USER_ID], users[c.USER_ID]), _codes(relevant[c.ITEM_ID], items.ids)
    np.add.at(counted, (user, _kinds(item, items)), 1)
    world = HeldOut(
        users=_codes(rows[c.USER_ID], users[c.USER_ID]),
        labels=rows[c.IS_LIKED].to_numpy(),
        kinds=_kinds(_codes(rows[c.ITEM_ID], items.ids), items),
        relevant=counted,
        n_history=users[N_HISTORY].to_numpy(),
    )
    return Collected(world, items, users[c.USER_ID], (user * len(items.ids) + item)[item >= 0])


def places(lists: pa.Table, asked: Collected, *, n: int) -> Array:
    """Collected lists of one model (user_id, rank, item_id) as places in the catalogue, int32 [U, n], -1 for none."""
    found = np.full((len(asked.user_ids), n), -1, dtype=np.int32)
    found[_codes(lists[c.USER_ID], asked.user_ids), lists[c.RANK].to_numpy() - 1] = _codes(
        lists[c.ITEM_ID], asked.items.ids
    )
    return found


def answers(
    asked: Collected,
    model: str,
    scores: Array | None,
    *,
    is_probability: bool,
    listed: Array | None,
    expected: Array | None,
    cutoffs: Sequence[int],
) -> Answers:
    """One model's answers with what its lists are like.

    `scores` are of the rows that `asked` was made from, None for lists alone. `listed` as `places`, None for a model
    without lists; they are measured at no cut-off beyond their length. `expected` likewise, of popularity, to see what
    surprises; without it there is no serendipity.
    """
    probabilities = scores if is_probability else None
    if listed is None:
        return Answers(model, scores, probabilities, None, {}, {})
    items = asked.items
    hits = _hit_kinds(listed, asked)
    per_item = {
        "novelty": list_metrics.self_information(items.counts),
        "average_popularity": items.counts,
        "head_share": list_metrics.head_items(items.counts),
    }
    per_list: dict[Key, Floats] = {}
    of_all: dict[Key, float] = {}
    for k in (k for k in cutoffs if k <= listed.shape[1]):
        times = list_metrics.times_listed(listed, len(items.ids), k=k)
        of_all |= {("coverage", k): list_metrics.coverage(times), ("gini", k): list_metrics.gini(times)}
        for name, values in per_item.items():
            per_list[name, k] = list_metrics.mean_of_items(values, listed, k=k)
        per_list["diversity", k] = list_metrics.diversity(items.features, listed, k=k)
        if expected is not None:
            n_relevant = asked.world.n_relevant
            per_list["serendipity", k] = list_metrics.serendipity(hits > 0, listed, expected, n_relevant, k=k)
    return Answers(model, scores, probabilities, hits, per_list, of_all)


def places_of_all(lists: DataFrame, asked: Collected, lengths: Mapping[str, int]) -> dict[str, Array]:
    """`places` of the lists (model, user_id, rank, item_id) of each model in `lengths`, collected one at a time."""
    found = {}
    for model, n in lengths.items():
        own = lists.where(F.col("model") == model).select(c.USER_ID, c.RANK, c.ITEM_ID)
        found[model] = places(own.toArrow(), asked, n=n)
    return found


def answers_of_all(
    asked: Collected,
    rows: pa.Table,
    lists: Mapping[str, Array],
    models: Sequence[str],
    *,
    with_probability: Collection[str],
    cutoffs: Sequence[int],
) -> list[Answers]:
    """`answers` of each model; `rows` have a column of scores for each that has any, `lists` are `places` likewise."""
    return [
        answers(
            asked,
            model,
            rows[model].to_numpy() if model in rows.column_names else None,
            is_probability=model in with_probability,
            listed=lists.get(model),
            expected=lists.get("popularity"),
            cutoffs=cutoffs,
        )
        for model in models
    ]


def _hit_kinds(listed: Array, asked: Collected) -> Array:
    """1 + kind of each listed item that is relevant to its user, else 0; int8 [U, K]."""
    at = np.arange(len(listed))[:, None] * len(asked.items.ids) + listed
    is_hit = np.isin(at, asked.relevant) & (listed >= 0)
    found: Array = is_hit * (asked.items.kinds[listed] + 1).astype(np.int8)
    return found


def _kinds(place: Array, items: Catalogue) -> Array:
    return np.where(place >= 0, items.kinds[place], COLD)


def _codes(values: pa.ChunkedArray, known: pa.ChunkedArray | pa.Array) -> Array:
    """The place of each value among the known ones, -1 for an unknown one; int64."""
    names = known.combine_chunks() if isinstance(known, pa.ChunkedArray) else known
    codes: Array = pc.index_in(values, value_set=names).fill_null(-1).to_numpy()
    return codes.astype(np.int64)
