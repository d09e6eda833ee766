"""Fits the baselines, and the stack of flm and them on the valid split.

The parts know train alone: the baselines are fitted on it anew, histories are from it, and the checkpoint answers with
the factors and bias terms of train. Its early stopping and its calibration, a few numbers, have seen the valid rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark.config import DiversityConfig
from flmrec_spark.errors import InputError
from flmrec_spark.fitting import Tools, fit_all, reranker, send
from flmrec_spark.stages import evaluation, hybrid
from flmrec_spark.stages.baselines import stacker
from flmrec_spark.stages.baselines.collect import world_of
from flmrec_spark.stages.baselines.world import Floats, World
from flmrec_spark.stages.models import Models, Stackers
from flmrec_spark.stages.scores import Shipped
from flmrec_spark.stages.usage import usage_of
from flmrec_spark.stages.user_prompts import user_prompts

log = logging.getLogger("flmrec")

MAX_USERS = 2000  # of valid, drawn by seed
CELLS = 10_000_000  # of these, users whose lists of all items a stack is fitted to, times items
FEWEST = 100  # such users at least, where there are as many
HEAD = 20  # best items of each part that such a list is made of
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
    held = evaluation.held_out(prepared.interactions, users, split=c.VALID, history_splits=(c.TRAIN,))
    rows = held.toArrow()
    if not rows.num_rows:
        raise InputError("hybrid: got no rows of split valid, expected some to fit the stack on; see prepare.split")
    world = prepared.world((c.TRAIN,))
    fitted = fit_all(models.baselines, world, tools, timed=lambda _: nullcontext())
    packed = send(tools.spark, world, fitted, np.ones(len(world.item_ids), dtype=bool))
    shipped = replace(shipped.of_train(), usage=usage_of(tools.spark))  # its pairs are none of the lists'
    prompts = user_prompts(
        users,
        prepared.interactions,
        splits=(c.TRAIN,),
        history_length=HISTORY_LENGTH,
        exclude_seen=prepared.exclude_seen,
    )
    chosen = tools.spark.createDataFrame(_chosen(rows, len(world.item_ids)))
    whole = evaluation.beside_lists(prompts.join(chosen, c.USER_ID, "left_semi"), held)
    others = prompts.join(chosen, c.USER_ID, "left_anti")
    others = evaluation.beside_lists(evaluation.without_lists(others), held)
    both = hybrid.features(whole.unionByName(others).repartition(partitions, c.USER_ID), shipped, packed, head=HEAD)
    found = both.toArrow()
    answered = found.filter(found[hybrid.IS_HELD])
    heads = found.filter(pc.invert(found[hybrid.IS_HELD]))
    if not (answered.num_rows and heads.num_rows):
        raise InputError("hybrid: the model scored no liked row of split valid, expected some to fit the stack on")
    n_baselines = len(models.baselines)
    stackers = _fitted(answered, heads, rows, n_baselines=n_baselines, exclude_seen=prepared.exclude_seen)
    for name, stack in (("rates", stackers.rating), ("lists", stackers.ranking)):
        if stack is not None:
            own = [f"{hybrid.FLM} rating", f"{hybrid.FLM} list"][: len(stack.weights) - len(models.baselines)]
            parts = zip([*own, *models.baselines], stack.weights, strict=True)
            log.info("hybrid: %s by %s", name, ", ".join(f"{part} {weight:.2f}" for part, weight in parts if weight))
    return replace(models, stackers=stackers)


def _chosen(rows: pa.Table, n_items: int) -> pa.Table:
    """user_id: as many users with likes as CELLS has room for."""
    users = sorted(set(rows.filter(rows[c.IS_LIKED])[c.USER_ID].to_pylist()))
    chosen = np.random.default_rng(SEED).permutation(users)[: max(FEWEST, CELLS // n_items)].tolist()
    return pa.table({c.USER_ID: pa.array(chosen, pa.string())})


def _fitted(answered: pa.Table, heads: pa.Table, rows: pa.Table, *, n_baselines: int, exclude_seen: bool) -> Stackers:
    """Of the features of held-out rows, and of the items that lists are made of."""
    features, place_of = _features(answered), {pair: place for place, pair in enumerate(_pairs(answered))}
    held = list(zip(_pairs(rows), rows[c.IS_LIKED].to_pylist(), rows[evaluation.IS_SEEN].to_pylist(), strict=True))
    known = [one for one in held if one[0] in place_of]  # the model refused the item or the user of the others
    places, labels = [place_of[pair] for pair, _, _ in known], np.array([liked for _, liked, _ in known], dtype=bool)
    rating = stacker.fit(features[places], labels) if len(np.unique(labels)) == 2 else None

    # Of what was liked only what is in a head: which items stand beside each other must not depend on what was liked.
    relevant = {pair for pair, is_liked, is_seen in held if is_liked and not (is_seen and exclude_seen)}
    pairs = _pairs(heads)
    own, is_relevant = _features(heads), np.array([pair in relevant for pair in pairs], dtype=bool)
    codes = np.unique([user for user, _ in pairs], return_inverse=True)[1]
    ranking = stacker.fit_for_lists(own, is_relevant, codes) if is_relevant.any() else None
    if ranking is None or not ranking.weights.any():
        log.warning("hybrid: no part orders the lists of split valid by what was liked; its lists are the model's")
        ranking = stacker.one_part(own, own.shape[1] - n_baselines - 1)
    return Stackers(rating, ranking)


def _features(answered: pa.Table) -> Floats:
    flat = answered[hybrid.FEATURES].combine_chunks()
    return np.asarray(flat.flatten().to_numpy(zero_copy_only=False).reshape(len(flat), -1))


def _pairs(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table[c.USER_ID].to_pylist(), table[c.ITEM_ID].to_pylist(), strict=True))
