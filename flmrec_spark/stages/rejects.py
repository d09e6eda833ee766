"""Refusing rows: a row is tagged with the first reason that applies, and refused rows become `rejects`.

A row that says again what another one says is at no fault: tagged as REPEATED, it is neither accepted nor refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspark.sql import Column, DataFrame, Window, WindowSpec
from pyspark.sql import functions as F

from flmrec_spark import columns as c

# Working columns of a tagged frame. A colon is in no attribute's name.
REFUSED = "row:refused"  # the reason; null for an accepted row
CONTENT = "row:content"  # JSON of a refused row; null for an accepted one
REPEATED = "row:repeated"  # in REFUSED

_GROUP = "row:group"
_BUCKETS = 256
_MAX_CONTENT = 2000
_BLANKS = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


def first_reason(reasons: Mapping[str, Column]) -> Column:
    """The name of the first condition that holds; null when none does."""
    return F.coalesce(*[F.when(condition, F.lit(reason)) for reason, condition in reasons.items()])


def content(reason: Column, names: Sequence[str]) -> Column:
    """JSON of the named columns where there is a reason; written for those rows only."""
    shown = [F.col(f"`{name}`").alias(name.removeprefix("row:")) for name in names]
    return F.when(reason.isNotNull(), F.substring(F.to_json(F.struct(*shown)), 1, _MAX_CONTENT))


def is_blank(column: Column) -> Column:
    """Null, empty or nothing but white space."""
    return F.coalesce(F.btrim(column, F.lit(_BLANKS)) == "", F.lit(True))


def among_accepted(frame: DataFrame, *, keys: Sequence[str], order: Sequence[Column]) -> tuple[DataFrame, WindowSpec]:
    """The frame and a window over its accepted rows of one key; every refused row stands in a window of its own."""
    own = F.when(F.col(REFUSED).isNull(), F.lit(-1)).otherwise(F.monotonically_increasing_id())
    return frame.withColumn(_GROUP, own), Window.partitionBy(*keys, _GROUP).orderBy(*order)


def accepted(tagged: DataFrame) -> DataFrame:
    return tagged.where(F.col(REFUSED).isNull()).drop(REFUSED, CONTENT)


def rejects(tagged: DataFrame, *, run_id: str, job: str, source: str) -> DataFrame:
    """The refused rows in the form of the table `rejects`.

    Rows are numbered within buckets of their content, so that no task has to sort all of them: the numbers are
    the same in every run, but not without gaps.
    """
    refused = tagged.where(F.col(REFUSED) != REPEATED).select(
        F.col(REFUSED).alias(c.REASON), F.col(CONTENT).alias("content")
    )
    bucket = F.pmod(F.xxhash64("content"), F.lit(_BUCKETS))
    in_bucket = F.row_number().over(Window.partitionBy(bucket).orderBy(F.col("content"), F.col(c.REASON)))
    return refused.select(
        F.lit(run_id).alias(c.RUN_ID),
        F.lit(job).alias("job"),
        F.lit(source).alias("source"),
        ((in_bucket - 1) * _BUCKETS + bucket + 1).cast("long").alias("row"),
        c.REASON,
        "content",
    )
