"""Who makes the lists of jobs/score.py: a baseline alone, or the stack of the language model and the baselines.

Nothing is fitted before lists are asked for, so a run that goes on from its staged lists fits nothing again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from flmrec_spark.config import ScoreConfig
from flmrec_spark.errors import CheckpointError, InputError
from flmrec_spark.fitting import Tools, fit, listed_items, send
from flmrec_spark.ship import listable
from flmrec_spark.stacking import HISTORY_LENGTH, Prepared, fit_models, with_stack
from flmrec_spark.stages.baselines.lists import MODEL, lists
from flmrec_spark.stages.hybrid import FLM, HYBRID, lists_of_both
from flmrec_spark.stages.scores import Shipped

NEEDS_CHECKPOINT = frozenset({FLM, HYBRID})

Timed = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Recommender:
    """Lists for users, and what of the catalogue they are made from."""

    history_length: int  # newest interactions of a user that it reads
    n_items: int  # that may be listed
    rejected: list[tuple[str, str]]  # (item_id, reason) of items that it cannot list
    lists: Callable[[DataFrame, int], DataFrame]  # rows of `user_prompts`, n -> rows as `scores.scores` gives them
    precision: str | None = None  # in which the language model computes, if it takes part


def recommender(
    config: ScoreConfig,
    prepared: Prepared,
    *,
    names: Sequence[str],
    ship: Callable[[str | None], Shipped],
    scores: Callable[..., DataFrame],
    tools: Tools,
    partitions: int,
    timed: Timed,
) -> Recommender:
    """The one that `score.strategy` names.

    Args:
      names: the baselines of a hybrid.
      ship: sends the checkpoint with the items that a filter lets through.
      scores: `stages.scores.scores`.

    Raises:
      As `baseline`, `hybrid` and `ship`.
    """
    splits, item_filter = config.history_splits, config.item_filter
    if config.strategy not in NEEDS_CHECKPOINT:
        return baseline(
            config.strategy, prepared, history_splits=splits, item_filter=item_filter, tools=tools, timed=timed
        )
    shipped = ship(item_filter)
    if config.strategy == HYBRID:
        return hybrid(
            shipped,
            prepared,
            stacked=lambda: ship(None) if item_filter else shipped,
            names=names,
            history_splits=splits,
            tools=tools,
            partitions=partitions,
            timed=timed,
        )

    def lists_of_flm(prompts: DataFrame, n: int) -> DataFrame:
        return scores(prompts, shipped, n=n)

    precision = shipped.bundle.precision
    return Recommender(shipped.history_length, shipped.n_items, list(shipped.rejected), lists_of_flm, precision)


def baseline(
    name: str,
    prepared: Prepared,
    *,
    history_splits: Sequence[str],
    item_filter: str | None,
    tools: Tools,
    timed: Timed,
) -> Recommender:
    """One baseline; it needs no checkpoint and refuses no item.

    Raises:
      ConfigError: as `ship.listable`.
      InputError: no item may be listed. From `lists`: there are too many interactions or items for it.
    """
    n_items = listable(prepared.items, item_filter).count()
    if not n_items:
        raise InputError(
            f"items: got {prepared.items.count()} of which none may be listed, expected some; see score.item_filter"
        )

    def make(prompts: DataFrame, n: int) -> DataFrame:
        with timed("collect"):
            world = prepared.world(history_splits)
        with timed(f"fit {name}"):
            fitted = {name: fit(name, world, tools)}
        packed = send(tools.spark, world, fitted, listed_items(prepared.items, item_filter, world.item_ids))
        return lists(prompts, packed, names=[name], n=n).drop(MODEL)

    return Recommender(HISTORY_LENGTH, n_items, [], make)


def hybrid(
    shipped: Shipped,
    prepared: Prepared,
    *,
    stacked: Callable[[], Shipped],
    names: Sequence[str],
    history_splits: Sequence[str],
    tools: Tools,
    partitions: int,
    timed: Timed,
) -> Recommender:
    """The stack of flm and the named baselines, ranked for what users go on to like.

    Args:
      shipped: the checkpoint with the items that may be listed.
      stacked: gives the checkpoint with all items, to fit the stack with.

    Raises:
      InputError: from `lists`, as `fit_models` and `with_stack`.
    """

    def make(prompts: DataFrame, n: int) -> DataFrame:
        models = fit_models(prepared, shipped, names=names, history_splits=history_splits, tools=tools, timed=timed)
        with timed("fit hybrid"):
            models = with_stack(models, prepared, shipped=stacked(), tools=tools, partitions=partitions)
        assert models.stackers is not None
        both = lists_of_both(prompts, shipped, models.packed, models.stackers.ranking, n=n)
        return both.where(F.col(MODEL) == HYBRID).drop(MODEL)

    return Recommender(
        max(HISTORY_LENGTH, shipped.history_length), shipped.n_items, shipped.rejected, make, shipped.bundle.precision
    )


def depends_on(strategy: str, *, names: Sequence[str], tools: Tools) -> list[str]:
    """What lists of a strategy other than flm depend on besides tables, checkpoint and `score`.

    Raises:
      CheckpointError: `content_lm` takes part and its model is not there.
    """
    parts = list(names) if strategy == HYBRID else [strategy]
    found = [strategy, *parts]
    if any(part.startswith("content_") for part in parts):
        found.append(tools.template.to_yaml())
    if "content_lm" in parts:
        file = Path(tools.model_path) / "model.safetensors"
        if not file.is_file():
            raise CheckpointError(f"{file}: not found, expected a pretrained model with safetensors weights")
        with file.open("rb") as stream:
            found.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return found
