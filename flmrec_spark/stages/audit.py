"""What must hold of staged lists before anybody reads them, counted by Spark and judged in plain Python."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, FractionalType

from flmrec_spark import columns as c
from flmrec_spark.config import DiversityConfig, ScoreConfig

OVER_CAP = "over_cap_"
_ENTRIES, _N_LISTED = "_flmrec_entries", "_flmrec_n_listed"


def list_counts(top_n: DataFrame, prompts: DataFrame, listable: DataFrame, *, n: int) -> DataFrame:
    """One row of counts, by one pass over the lists and one over the users.

    Args:
      prompts: rows of `user_prompts`, with the candidates that the run scored.
      listable: item_id of the items that may be listed, distinct.
      n: length of a full list.

    Returns:
      users, users_listed, users_rejected, users_lost (in, not out), users_unknown (out, not in); rows, rank_gaps,
      repeated_items, bad_scores, disorders; excluded_listed, unlistable_listed, not_candidates; not_full (lists of
      fewer than n different items, for which `short_lists` says whether more were left).
    """
    is_row, score = F.col(c.RANK) > 0, F.col(c.SCORE)
    allowed = listable.select(c.ITEM_ID, F.lit(True).alias("may_stand"))
    by_user = (
        top_n.join(allowed, on=[c.ITEM_ID], how="left")
        .groupBy(c.USER_ID)
        .agg(
            F.sort_array(F.collect_list(F.when(is_row, F.struct(c.RANK, c.ITEM_ID, c.SCORE)))).alias(_ENTRIES),
            F.count_if(is_row & F.col("may_stand").isNull()).alias("unlistable"),
            F.count_if(is_row & (F.isnan(score) | ~score.between(0.0, 1.0) | score.isNull())).alias("bad"),
        )
    )
    asked = prompts.select(c.USER_ID, c.EXCLUDED, c.CANDIDATES, F.lit(True).alias("is_in"))
    both = asked.join(by_user, on=[c.USER_ID], how="full")  # a profile may have columns of any name
    n_rows, taken = F.size(_ENTRIES), F.array_distinct(F.transform(_ENTRIES, lambda entry: entry[c.ITEM_ID]))
    return both.select(
        F.col("is_in"),
        F.col(_ENTRIES).isNotNull().alias("is_out"),
        F.greatest(n_rows, F.lit(0)).alias("rows"),
        F.size(F.filter(_ENTRIES, lambda entry, at: entry[c.RANK] != at + 1)).alias("gaps"),
        (n_rows - F.size(taken)).alias("repeated"),
        F.size(F.filter(_ENTRIES, lambda entry, at: _is_behind(F.get(_ENTRIES, at - 1), entry))).alias("disorders"),
        F.size(F.array_intersect(taken, c.EXCLUDED)).alias("excluded"),
        F.size(F.array_except(taken, c.CANDIDATES)).alias("not_candidates"),
        F.size(taken).alias(_N_LISTED),
        "unlistable",
        "bad",
    ).agg(
        F.count("is_in").alias("users"),
        F.count_if(F.col("is_in") & (F.col("rows") > 0)).alias("users_listed"),
        F.count_if(F.col("is_in") & F.col("is_out") & (F.col("rows") == 0)).alias("users_rejected"),
        F.count_if(F.col("is_in") & ~F.col("is_out")).alias("users_lost"),
        F.count_if(F.col("is_in").isNull()).alias("users_unknown"),
        *_sums(
            rows="rows",
            rank_gaps="gaps",
            repeated_items="repeated",
            bad_scores="bad",
            disorders="disorders",
            excluded_listed="excluded",
            unlistable_listed="unlistable",
            not_candidates="not_candidates",
        ),
        F.count_if(F.col("is_in") & F.col(_N_LISTED).between(1, n - 1)).alias("not_full"),
    )


def _is_behind(last: Column, entry: Column) -> Column:
    """Whether a row stands behind one that it should stand before; false for the first, whose last one is null."""
    is_before = (entry[c.SCORE] > last[c.SCORE]) | (
        (entry[c.SCORE] == last[c.SCORE]) & (entry[c.ITEM_ID] <= last[c.ITEM_ID])
    )
    return F.coalesce(is_before, F.lit(False))


def _sums(**columns: str) -> Iterator[Column]:
    """Sums of sizes; that of a null is null, or -1, and counts nothing."""
    for name, column in columns.items():
        yield F.coalesce(F.sum(F.greatest(F.col(column), F.lit(0))), F.lit(0)).alias(name)


def short_lists(top_n: DataFrame, prompts: DataFrame, listable: DataFrame, *, n: int) -> DataFrame:
    """One row: short_lists, lists of fewer than n items whose users had more left; arguments as of `list_counts`.

    Looks at the users of such lists alone, and at no more items of each than were excluded or are candidates.
    """
    taken = top_n.where(F.col(c.RANK) > 0).groupBy(c.USER_ID).agg(F.count_distinct(c.ITEM_ID).alias(_N_LISTED))
    asked = prompts.select(c.USER_ID, c.EXCLUDED, c.CANDIDATES).join(taken.where(F.col(_N_LISTED) < n), on=[c.USER_ID])
    has_pool = F.col(c.CANDIDATES).isNotNull()
    looked_at = F.when(has_pool, F.array_except(c.CANDIDATES, c.EXCLUDED)).otherwise(F.col(c.EXCLUDED))
    rows = asked.select(c.USER_ID, _N_LISTED, has_pool.alias("has_pool"), F.explode_outer(looked_at).alias(c.ITEM_ID))
    found = (
        rows.join(listable.select(c.ITEM_ID, F.lit(1).alias("is_there")), on=[c.ITEM_ID], how="left")
        .groupBy(c.USER_ID, _N_LISTED, "has_pool")
        .agg(F.count("is_there").alias("there"))
        .crossJoin(F.broadcast(listable.agg(F.count("*").alias("all"))))
    )
    left = F.when(F.col("has_pool"), F.col("there")).otherwise(F.col("all") - F.col("there"))
    return found.agg(F.count_if(F.col(_N_LISTED) < F.least(left, F.lit(n))).alias("short_lists"))


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


def broken(counts: Mapping[str, int], config: ScoreConfig) -> list[str]:
    """What the counts of the functions above say of lists that are wrong, whatever the settings."""
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
    return [f"{counts[name]:,} {text}" for name, text in must_be_zero.items() if counts[name]]


def faults(counts: Mapping[str, int], config: ScoreConfig, *, n_items: int, n_rejected_items: int) -> Sequence[str]:
    """What the counts of the functions above say against publishing; empty when nothing does."""
    found = broken(counts, config)
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
