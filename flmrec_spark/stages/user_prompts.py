"""One row per user with all that their prompt and their list need."""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark.errors import InputError
from flmrec_spark.tables.schemas import INTERACTION
from flmrec_spark.tables.spark_errors import raised

_IS_KNOWN = "user:is_known"


def user_prompts(
    users: DataFrame,
    interactions: DataFrame,
    *,
    splits: Sequence[str],
    history_length: int,
    exclude_seen: bool,
    are_all: bool = False,
) -> DataFrame:
    """Profile, history and excluded items of every user.

    Args:
      users: user_id and profile columns; every user comes out, also one without any interaction.
      interactions: as in the table; only rows of `splits` count.
      are_all: `users` are all there are: whoever is named by the interactions alone is an InputError when it is read,
        as a killed prepare leaves some tables older than others.
      history_length: entries of the history at most, newest first, equal moments by item_id.

    Returns:
      The columns of `users`, history (array of INTERACTION), excluded (array of distinct item ids, empty unless
      exclude_seen), candidates (array of item ids, null: all items).
    """
    entry = F.struct(*[F.col(field.name) for field in INTERACTION.fields])
    newest_first = F.struct((-F.col(c.MOMENT)).alias("order"), F.col(c.ITEM_ID), entry.alias("entry"))
    items = F.transform("all", lambda row: row[c.ITEM_ID])
    seen = F.array_distinct(items) if exclude_seen else F.array().cast("array<string>")
    by_user = (
        interactions.where(F.col(c.SPLIT).isin(*splits))
        .groupBy(c.USER_ID)
        .agg(F.sort_array(F.collect_list(newest_first)).alias("all"))
        .select(
            c.USER_ID,
            F.transform(F.slice("all", 1, history_length), lambda row: row["entry"]).alias(c.HISTORY),
            seen.alias(c.EXCLUDED),
        )
    )
    none, joined = F.array(), users.join(by_user, on=[c.USER_ID], how="left")
    if are_all:
        stranger = raised(InputError("table users: lacks ids that interactions name; run jobs/prepare.py again"))
        own = F.when(F.col(_IS_KNOWN), F.col(c.USER_ID)).otherwise(stranger.cast("string"))
        joined = users.withColumn(_IS_KNOWN, F.lit(True)).join(by_user, on=[c.USER_ID], how="full")
        joined = joined.withColumn(c.USER_ID, own)
    return joined.select(
        *users.columns,
        F.coalesce(F.col(c.HISTORY), none.cast(by_user.schema[c.HISTORY].dataType)).alias(c.HISTORY),
        F.coalesce(F.col(c.EXCLUDED), none.cast("array<string>")).alias(c.EXCLUDED),
        F.lit(None).cast("array<string>").alias(c.CANDIDATES),
    )


def with_candidates(prompts: DataFrame, candidates: DataFrame) -> DataFrame:
    """`prompts` with the items of a (user_id, item_id) table as each user's candidates; none for a user without any."""
    listed = candidates.groupBy(c.USER_ID).agg(F.array_sort(F.collect_set(c.ITEM_ID)).alias(c.CANDIDATES))
    empty = F.array().cast("array<string>")
    return (
        prompts.drop(c.CANDIDATES)
        .join(listed, on=[c.USER_ID], how="left")
        .withColumn(c.CANDIDATES, F.coalesce(F.col(c.CANDIDATES), empty))
    )
