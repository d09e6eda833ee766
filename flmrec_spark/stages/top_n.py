"""Staged lists: what the model said of every user, the published part of it, and who got no list."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from flmrec_spark import columns as c


def staged(scored: DataFrame, *, run_id: str) -> DataFrame:
    """Rows of `scores.scores` as rows of the table `top_n`."""
    return scored.withColumn(c.RUN_ID, F.lit(run_id))


def published(top_n: DataFrame, *, n: int) -> DataFrame:
    """The first n of each list as rows of the table `recommendations`, a user's rows side by side in one file."""
    lists = top_n.where(F.col(c.RANK).between(1, n)).select(
        c.USER_ID, c.RANK, c.ITEM_ID, c.SCORE, c.PROBABILITY, c.HAS_HISTORY, c.RUN_ID
    )
    return lists.repartitionByRange(c.USER_ID).sortWithinPartitions(c.USER_ID, c.RANK)


def without_list(top_n: DataFrame) -> DataFrame:
    """user_id and reason of every user who got none."""
    return top_n.where(F.col(c.RANK) == 0).select(c.USER_ID, c.REASON)
