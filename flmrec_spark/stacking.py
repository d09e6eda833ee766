"""Fits the baselines, and the stack of flm and them on the valid split.

The parts know train alone: the baselines are fitted on it anew, histories are from it, and the checkpoint answers with
the factors and bias terms of train. Its early stopping and its calibration, a few numbers, have seen the valid rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark.config import DiversityConfig
from flmrec_spark.errors import InputError
from flmrec_spark.fitting import Tools, fit_all, reranker, send
from flmrec_spark.stages import evaluation, hybrid
from flmrec_spark.stages.baselines import stacker
from flmrec_spark.stages.baselines.collect import world_of
from flmrec_spark.stages.baselines.stacker import Lists
from flmrec_spark.stages.baselines.world import World
from flmrec_spark.stages.models import Models, Stackers
from flmrec_spark.stages.scores import Shipped
from flmrec_spark.stages.user_prompts import user_prompts

log = logging.getLogger("flmrec")

MAX_USERS = 2000  # of valid, drawn by seed
N_DRAWN = 100  # items per user that the liked ones of valid are told apart from
CELLS = 500_000  # users of valid whose whole lists say which parts a stack needs, times items
FEWEST = 50  # such users below which nobody is asked
HISTORY_LENGTH = 10_000  # newest interactions of a user that baselines read
SEED = 1


@dataclass(frozen=True)
class Prepared:
    """The tables of these names, and whether lists leave out what their user has met."""

    interactions: DataFrame
    items: DataFrame
    users: DataFrame
    exclude_seen: bool = True

    def world(self, splits: Sequence[str]) -> World:
        return world_of(self.interactions.where(F.col(c.SPLIT).isin(*splits)), self.items, self.users)


def fit_models(
    prepared: Prepared,
    shipped: Shipped,
    *,
    names: Sequence[str],
    history_splits: Sequence[str],
    tools: Tools,
    timed: Callable[[str], AbstractContextManager[None]],
    diversity: DiversityConfig | None = None,
) -> Models:
    """The shipped model and the named baselines, fitted on the history splits and sent; without a stack.

    Args:
      diversity: for baselines whose lists are to be diverse; None when none is.

    Raises:
      InputError: as `world_of`.
    """
    if not names:
        return Models(shipped, None, [], None)
    with timed("collect"):
        world = prepared.world(history_splits)
    fitted = fit_all(names, world, tools, timed=timed)
    is_listed = np.ones(len(world.item_ids), dtype=bool)
    packed = send(tools.spark, world, fitted, is_listed, reranker(diversity, world, tools))
    return Models(shipped, packed, list(fitted), None)


def with_stack(models: Models, prepared: Prepared, *, shipped: Shipped, tools: Tools, partitions: int) -> Models:
    """The models and a stack of them.

    Args:
      shipped: the checkpoint with all items.
      partitions: tasks of the pass that scores the rows that the stack is fitted on.

    Raises:
      InputError: there is no baseline, split valid has no rows, or nothing in it is liked.
    """
    if not models.baselines:
        raise InputError("hybrid: got no baseline, expected some to stack with the model; see evaluate.baselines")
    drawn = evaluation.draw_users(prepared.interactions, split=c.VALID, max_users=MAX_USERS, seed=SEED)
    users = prepared.users.join(drawn, c.USER_ID, "left_semi")
    rows = evaluation.held_out(prepared.interactions, users, split=c.VALID, history_splits=(c.TRAIN,)).toArrow()
    if not rows.num_rows:
        raise InputError("hybrid: got no rows of split valid, expected some to fit the stack on; see prepare.split")
    world = prepared.world((c.TRAIN,))
    fitted = fit_all(models.baselines, world, tools, timed=lambda _: nullcontext())
    packed = send(tools.spark, world, fitted, np.ones(len(world.item_ids), dtype=bool))
    drawn, whole = _drawn(rows, world.item_ids), _whole(rows, world.item_ids)
    held = rows.select([c.USER_ID, c.ITEM_ID]).cast(drawn.schema)
    pairs = pa.concat_tables([held, drawn, whole]).group_by([c.USER_ID, c.ITEM_ID]).aggregate([])
    asked = tools.spark.createDataFrame(pairs)
    shipped = shipped.of_train()
    prompts = user_prompts(
        users,
        prepared.interactions,
        splits=(c.TRAIN,),
        history_length=HISTORY_LENGTH,
        exclude_seen=prepared.exclude_seen,
    )
    seen = prompts.select(c.USER_ID, F.explode(c.EXCLUDED).alias(c.ITEM_ID)).toArrow()
    spread = evaluation.pointwise_prompts(prompts, asked).repartition(partitions, c.USER_ID)
    answered = hybrid.features(spread, shipped, packed).toArrow()
    answered = answered.sort_by([(c.USER_ID, "ascending"), (c.ITEM_ID, "ascending")])
    if not answered.num_rows:
        raise InputError("hybrid: the model scored none of the rows of split valid, expected some to fit the stack on")
    stackers = _fitted(answered, rows, seen, drawn, whole, exclude_seen=prepared.exclude_seen)
    for name, stack in (("rates", stackers.rating), ("lists", stackers.ranking)):
        if stack is not None:
            own = [f"{hybrid.FLM} rating", f"{hybrid.FLM} list"][: len(stack.weights) - len(models.baselines)]
            parts = zip([*own, *models.baselines], stack.weights, strict=True)
            log.info("hybrid: %s by %s", name, ", ".join(f"{part} {weight:.2f}" for part, weight in parts if weight))
    return replace(models, stackers=stackers)


def _drawn(rows: pa.Table, item_ids: Sequence[str]) -> pa.Table:
    """user_id, item_id: N_DRAWN items of each user."""
    users = sorted(set(rows[c.USER_ID].to_pylist()))
    random = np.random.default_rng(SEED)
    places = random.integers(0, len(item_ids), size=len(users) * N_DRAWN)
    return _table([user for user in users for _ in range(N_DRAWN)], [item_ids[place] for place in places])


def _whole(rows: pa.Table, item_ids: Sequence[str]) -> pa.Table:
    """user_id, item_id: all items, of as many users with likes as CELLS has room for; of nobody where that is few."""
    liked = rows.filter(rows[c.IS_LIKED])
    users = sorted(set(liked[c.USER_ID].to_pylist()))
    chosen = np.random.default_rng(SEED + 1).permutation(users)[: CELLS // len(item_ids)].tolist()
    chosen = chosen if len(chosen) >= FEWEST else []
    return _table([user for user in chosen for _ in item_ids], [*item_ids] * len(chosen))


def _table(users: list[str], items: list[str]) -> pa.Table:
    return pa.table({c.USER_ID: pa.array(users, pa.string()), c.ITEM_ID: pa.array(items, pa.string())})


def _fitted(
    answered: pa.Table, rows: pa.Table, seen: pa.Table, drawn: pa.Table, whole: pa.Table, *, exclude_seen: bool
) -> Stackers:
    flat = answered[hybrid.FEATURES].combine_chunks()
    features = flat.flatten().to_numpy(zero_copy_only=False).reshape(len(flat), -1)
    place_of = {pair: place for place, pair in enumerate(_pairs(answered))}
    known_rows = [
        (place_of[pair], is_liked, is_seen)
        for pair, is_liked, is_seen in zip(
            _pairs(rows), rows[c.IS_LIKED].to_pylist(), rows[evaluation.IS_SEEN].to_pylist(), strict=True
        )
        if pair in place_of  # the model refused the item or the user
    ]
    relevant = {place for place, is_liked, is_seen in known_rows if is_liked and not (is_seen and exclude_seen)}
    met = {place_of[pair] for pair in _pairs(seen) if pair in place_of}
    known = {place_of[pair] for pair in _pairs(rows) if pair in place_of} | met
    codes = np.unique(answered[c.USER_ID].to_numpy(zero_copy_only=False), return_inverse=True)[1]

    def told(others: set[int], liked: set[int]) -> tuple[Any, Any, Any]:
        """Features, whether relevant, and the users of some rows."""
        places = np.array([*sorted(liked), *sorted(others)], dtype=np.int64)
        return features[places], np.arange(len(places)) < len(liked), codes[places]

    others, listed = ({place_of[pair] for pair in _pairs(some) if pair in place_of} for some in (drawn, whole))
    n_asked = len(np.unique(codes[sorted(listed & relevant)])) if listed & relevant else 0
    lists = Lists.of(*told(listed - met - relevant, listed & relevant)) if n_asked >= FEWEST else None
    ranking = stacker.fit_for_lists(*told(others - known, relevant), lists)
    places = np.array([place for place, _, _ in known_rows], dtype=np.int64)
    labels = np.array([is_liked for _, is_liked, _ in known_rows], dtype=bool)
    has_both = len(np.unique(labels)) == 2
    return Stackers(stacker.fit(features[places], labels) if has_both else None, ranking)


def _pairs(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table[c.USER_ID].to_pylist(), table[c.ITEM_ID].to_pylist(), strict=True))
