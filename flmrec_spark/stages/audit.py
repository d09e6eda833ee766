"""What must hold of staged lists before anybody reads them, counted by Spark and judged in plain Python."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, FractionalType

from flmrec_spark import columns as c
from flmrec_spark.config import DiversityConfig, ScoreConfig

OVER_CAP = "over_cap_"


def user_counts(top_n: DataFrame, users: DataFrame) -> DataFrame:
    """One row: users, users_listed, users_rejected, users_lost (in, not out), users_unknown (out, not in)."""
    out = top_n.groupBy(c.USER_ID).agg(F.max(F.col(c.RANK) > 0).alias("is_listed"))
    joined = users.select(c.USER_ID, F.lit(True).alias("is_in")).join(out, on=[c.USER_ID], how="full")
    return joined.agg(
        F.count("is_in").alias("users"),
        F.count_if(F.col("is_in") & F.col("is_listed")).alias("users_listed"),
        F.count_if(F.col("is_in") & ~F.col("is_listed")).alias("users_rejected"),
        F.count_if(F.col("is_listed").isNull()).alias("users_lost"),
        F.count_if(F.col("is_in").isNull()).alias("users_unknown"),
    )


def list_counts(top_n: DataFrame) -> DataFrame:
    """One row: rows, rank_gaps, repeated_items, bad_scores, disorders."""
    order = Window.partitionBy(c.USER_ID).orderBy(c.RANK, c.ITEM_ID)
    score, item = F.col(c.SCORE), F.col(c.ITEM_ID)
    last_score, last_item = F.lag(score).over(order), F.lag(item).over(order)
    is_out_of_order = (score > last_score) | ((score == last_score) & (item <= last_item))
    rows = top_n.where(F.col(c.RANK) > 0).select(
        (F.col(c.RANK) != F.row_number().over(order)).alias("is_gap"),
        (F.row_number().over(Window.partitionBy(c.USER_ID, c.ITEM_ID).orderBy(c.RANK)) > 1).alias("is_repeated"),
        (F.isnan(score) | ~score.between(0.0, 1.0) | score.isNull()).alias("is_bad"),
        F.coalesce(is_out_of_order, F.lit(False)).alias("is_out_of_order"),
    )
    return rows.agg(
        F.count("*").alias("rows"),
        F.count_if("is_gap").alias("rank_gaps"),
        F.count_if("is_repeated").alias("repeated_items"),
        F.count_if("is_bad").alias("bad_scores"),
        F.count_if("is_out_of_order").alias("disorders"),
    )


def item_counts(top_n: DataFrame, prompts: DataFrame, listable: DataFrame, *, n: int) -> DataFrame:
    """One row: excluded_listed, unlistable_listed, not_candidates, short_lists (shorter than what was left).

    Args:
      prompts: rows of `user_prompts`, with the candidates that the run scored.
      listable: item_id of the items that may be listed.
    """
    listed = top_n.where(F.col(c.RANK) > 0).groupBy(c.USER_ID).agg(F.collect_set(c.ITEM_ID).alias("listed"))
    catalogue = listable.agg(F.sort_array(F.collect_set(c.ITEM_ID)).alias("catalogue"))
    asked = prompts.select(c.USER_ID, c.EXCLUDED, c.CANDIDATES)  # a profile may have columns of any name
    joined = asked.join(listed, on=[c.USER_ID], how="left").crossJoin(F.broadcast(catalogue))
    taken = F.coalesce(F.col("listed"), F.array().cast("array<string>"))
    pool = F.coalesce(F.array_intersect(c.CANDIDATES, "catalogue"), F.col("catalogue"))
    left = F.size(pool) - F.size(F.array_intersect(F.col(c.EXCLUDED), pool))
    is_pool = F.col(c.CANDIDATES).isNotNull()
    return joined.agg(
        F.coalesce(F.sum(F.size(F.array_intersect(taken, c.EXCLUDED))), F.lit(0)).alias("excluded_listed"),
        F.coalesce(F.sum(F.size(F.array_except(taken, "catalogue"))), F.lit(0)).alias("unlistable_listed"),
        F.coalesce(F.sum(F.when(is_pool, F.size(F.array_except(taken, c.CANDIDATES))).otherwise(0)), F.lit(0)).alias(
            "not_candidates"
        ),
        F.count_if(F.col("listed").isNotNull() & (F.size(taken) < F.least(left, F.lit(n)))).alias("short_lists"),
    )


def cap_counts(top_n: DataFrame, items: DataFrame, diversity: DiversityConfig) -> Iterator[DataFrame]:
    """One row per cap: over_cap_<attribute>, lists that hold too many items of one value; see `reranking.values_of`."""
    listed = top_n.where(F.col(c.RANK) > 0).select(c.USER_ID, c.ITEM_ID)
    for name, most in diversity.caps.items():
        values = items.select(c.ITEM_ID, F.explode(_values(items, name, diversity.separators.get(name))).alias("value"))
        held = listed.join(values, c.ITEM_ID).groupBy(c.USER_ID, "value").count()
        over = held.where(F.col("count") > most)
        yield over.agg(F.count_distinct(c.USER_ID).alias(f"{OVER_CAP}{name}"))


def _values(items: DataFrame, name: str, separator: str | None) -> Column:
    column, kind = F.col(f"`{name}`"), items.schema[name].dataType
    if isinstance(kind, ArrayType):
        parts = column.cast("array<string>")
    elif separator is None:
        parts = F.array(F.when(F.isnan(column), None).otherwise(column) if isinstance(kind, FractionalType) else column)
        parts = parts.cast("array<string>")
    else:
        parts = F.split(column.cast("string"), re.escape(separator))
    trimmed = F.transform(parts, lambda part: F.trim(part))
    return F.array_distinct(F.filter(trimmed, lambda part: part != ""))


def faults(counts: Mapping[str, int], config: ScoreConfig, *, n_items: int, n_rejected_items: int) -> Sequence[str]:
    """What the counts of the three functions above say against publishing; empty when nothing does."""
    must_be_zero = {
        "users_lost": "users came in and are neither listed nor rejected",
        "users_unknown": "listed users are not in the table users",
        "rank_gaps": "ranks leave a gap",
        "repeated_items": "items stand twice in a list",
        "bad_scores": "scores are no number from 0 to 1",
        "disorders": "rows are not in the order of score, then item_id",
        "excluded_listed": "listed items were already seen",
        "unlistable_listed": "listed items fail score.item_filter or are not in the table items",
        "not_candidates": "listed pairs are not in score.candidates",
        "short_lists": "lists are shorter than the items that were left",
    }
    if config.diversity.caps:  # a list ends where no item that is left has room
        del must_be_zero["short_lists"]
    for name, most in config.diversity.caps.items():
        must_be_zero[f"{OVER_CAP}{name}"] = f"lists hold more than {most} items of one {name}"
    found = [f"{counts[name]:,} {text}" for name, text in must_be_zero.items() if counts[name]]
    coverage = counts["users_listed"] / max(1, counts["users"])
    if coverage < config.min_coverage or not counts["users_listed"]:
        found.append(
            f"{counts['users_listed']:,} of {counts['users']:,} users have a list, expected one at least "
            f"and a share of at least score.min_coverage = {config.min_coverage}"
        )
    if n_rejected_items > config.max_reject_share * n_items:
        found.append(
            f"{n_rejected_items:,} of {n_items:,} items were refused, "
            f"expected a share of at most score.max_reject_share = {config.max_reject_share}"
        )
    return found
