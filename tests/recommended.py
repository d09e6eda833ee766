"""The lists that jobs/score.py would stage, without its tables, audit and record."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

from pyspark.sql import SparkSession

from flmrec_spark.config import Config
from flmrec_spark.fitting import Tools
from flmrec_spark.prompts import load_template
from flmrec_spark.ship import settled, ship
from flmrec_spark.stacking import Prepared
from flmrec_spark.stages.scores import Shipped, scores
from flmrec_spark.stages.user_prompts import user_prompts
from flmrec_spark.strategies import recommender
from flmrec_spark.tables.delta import Tables


def recommended(spark: SparkSession, config: Config) -> list[dict[str, Any]]:
    """Rows of `scores.scores`, by what `score.strategy` names."""
    tables, asked = Tables(spark, config.tables), config.score
    prepared = Prepared(*(tables.read(name) for name in ("interactions", "items", "users")), asked.exclude_seen)

    def shipped(item_filter: str | None) -> Shipped:
        sent = {"checkpoint": config.checkpoint, "items": prepared.items, "users": prepared.users}
        return ship(spark, **sent, score=asked, item_filter=item_filter)

    found = recommender(
        asked,
        prepared,
        names=config.evaluate.baselines,
        ship=shipped,
        scores=scores,
        tools=Tools(spark, partial(load_template, config.prompts.template), config.model.path),
        partitions=asked.partitions or 2,
        timed=lambda name: nullcontext(),
    )
    prompts = user_prompts(
        prepared.users,
        prepared.interactions,
        splits=asked.history_splits,
        history_length=found.history_length,
        exclude_seen=asked.exclude_seen,
        are_all=True,
    )
    used = None if found.shipped is None else settled(found.shipped, prompts, asked)[0]
    lists = found.lists(prompts.repartition(asked.partitions or 2), asked.n, used)
    return [row.asDict() for row in lists.collect()]
