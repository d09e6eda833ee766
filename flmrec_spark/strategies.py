"""Who makes the lists of jobs/score.py: a baseline alone, or the stack of the language model and the baselines.

Nothing is fitted before lists are asked for, so a run that goes on from its staged lists fits nothing again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from flmrec_spark.config import DiversityConfig, ScoreConfig
from flmrec_spark.errors import InputError
from flmrec_spark.fitting import Tools, fit, listed_items, reranker, send
from flmrec_spark.lm import manifest
from flmrec_spark.ship import listable
from flmrec_spark.stacking import HISTORY_LENGTH, Prepared, fit_models, with_stack
from flmrec_spark.stages.baselines.lists import MODEL, lists
from flmrec_spark.stages.diversity import Diverse, diversified
from flmrec_spark.stages.hybrid import FLM, HYBRID, IS_HELD, lists_of_both
from flmrec_spark.stages.scores import Shipped

NEEDS_CHECKPOINT = frozenset({FLM, HYBRID})

Timed = Callable[[str], AbstractContextManager[None]]
Lists = Callable[[DataFrame, int, Shipped | None], DataFrame]
"""Rows of `user_prompts`, n and what was shipped, its precision settled -> rows as `scores.scores` gives them."""


@dataclass(frozen=True)
class Recommender:
    """Lists for users, and what of the catalogue they are made from."""

    history_length: int  # newest interactions of a user that it reads
    n_items: int  # that may be listed
    rejected: list[tuple[str, str]]  # (item_id, reason) of items that it cannot list
    lists: Lists
    shipped: Shipped | None = None  # the language model, if it takes part; its precision may still be `auto`


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
    diversity = config.diversity if config.diversity.is_on else None
    if config.strategy not in NEEDS_CHECKPOINT:
        return baseline(
            config.strategy,
            prepared,
            history_splits=splits,
            item_filter=item_filter,
            diversity=diversity,
            tools=tools,
            timed=timed,
        )
    shipped = ship(item_filter)
    if config.strategy == HYBRID:
        return hybrid(
            shipped,
            prepared,
            ship_all=(lambda: ship(None)) if item_filter else None,
            names=names,
            history_splits=splits,
            diversity=diversity,
            tools=tools,
            partitions=partitions,
            timed=timed,
        )

    def lists_of_flm(prompts: DataFrame, n: int, settled: Shipped | None) -> DataFrame:
        return scores(prompts, settled, n=n, diversity=diversity)

    return Recommender(shipped.history_length, shipped.n_items, list(shipped.rejected), lists_of_flm, shipped)


def baseline(
    name: str,
    prepared: Prepared,
    *,
    history_splits: Sequence[str],
    item_filter: str | None,
    diversity: DiversityConfig | None,
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

    def make(prompts: DataFrame, n: int, _: Shipped | None) -> DataFrame:
        with timed("collect"):
            world = prepared.world(history_splits)
        with timed(f"fit {name}"):
            fitted = {name: fit(name, world, tools)}
        is_listed = listed_items(prepared.items, item_filter, world.item_ids)
        packed = send(tools.spark, world, fitted, is_listed, reranker(diversity, world, tools))
        return lists(prompts, packed, names=[name], n=n, diverse=diversity is not None).drop(MODEL)

    return Recommender(HISTORY_LENGTH, n_items, [], make)


def hybrid(
    shipped: Shipped,
    prepared: Prepared,
    *,
    ship_all: Callable[[], Shipped] | None,
    names: Sequence[str],
    history_splits: Sequence[str],
    diversity: DiversityConfig | None,
    tools: Tools,
    partitions: int,
    timed: Timed,
) -> Recommender:
    """The stack of flm and the named baselines, ranked for what users go on to like.

    Args:
      shipped: the checkpoint with the items that may be listed.
      ship_all: sends the checkpoint with all items, to fit the stack with; None when `shipped` has them all.

    Raises:
      InputError: from `lists`, as `fit_models` and `with_stack`.
    """

    def make(prompts: DataFrame, n: int, settled: Shipped | None) -> DataFrame:
        assert settled is not None
        models = fit_models(prepared, settled, names=names, history_splits=history_splits, tools=tools, timed=timed)
        with timed("fit hybrid"):
            stacked = settled if ship_all is None else _like(ship_all(), settled)
            models = with_stack(models, prepared, shipped=stacked, tools=tools, partitions=partitions)
        assert models.stackers is not None and models.packed is not None
        diverse = None if diversity is None else Diverse(diversity, n)
        both = lists_of_both(prompts, settled, models.packed, models.stackers.ranking, n=n, diverse=diverse)
        return both.where(F.col(MODEL) == (diversified(HYBRID) if diverse else HYBRID)).drop(MODEL, IS_HELD)

    return Recommender(max(HISTORY_LENGTH, shipped.history_length), shipped.n_items, shipped.rejected, make, shipped)


def _like(shipped: Shipped, other: Shipped) -> Shipped:
    """The shipment in the other one's precision."""
    return replace(shipped, bundle=replace(shipped.bundle, precision=other.bundle.precision))


def depends_on(names: Sequence[str], *, tools: Tools, compares_texts: bool = False) -> list[str]:
    """What baselines' lists depend on besides tables and `score`.

    Args:
      compares_texts: diversity compares the items of a baseline's list, which it does by their texts.

    Raises:
      CheckpointError: `content_lm` takes part and its model is not there.
    """
    found = list(names)
    if any(name.startswith("content_") for name in names) or compares_texts:
        found.append(tools.template.to_yaml())
    if "content_lm" in names:
        found += [digest for _, digest in manifest.pretrained_files(Path(tools.model_path))]
    return found
