"""Interactions -> examples: what a prompt may show of a user at a moment, and what it is asked about.

Shown is what happened strictly before the moment: train rows when the targets are train or valid, train and valid
rows when they are test. Train rows are asked about in chunks, rows of one moment always in one chunk; the moment of
a chunk is that of its first row. Valid and test rows are asked about in one chunk per user, as a nightly run would
score them; where the splits interleave, in one chunk per moment.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark.tables.schemas import EXAMPLES, INTERACTION

_TRAIN_BEFORE, _EARLY_BEFORE, _CHUNK, _BEFORE = "train_before", "early_before", "chunk", "before"
_TRAIN_ROWS, _EARLY_ROWS, _ENTRY = "train_rows", "early_rows", "entry"


def build_examples(
    interactions: DataFrame, *, is_forward: bool, history_length: int, targets_per_example: int
) -> DataFrame:
    """Rows of the table `examples`, unique by user_id, split and moment.

    Args:
      interactions: rows of the table `interactions`.
      is_forward: a user's valid rows all follow the train rows, and the test rows those (`splits.FORWARD`).
      history_length: entries of a history at most, the newest.
      targets_per_example: train rows of a chunk, or more where moments tie.
    """
    asked = _asked(interactions, is_forward, targets_per_example)
    joined = asked.join(_shown(interactions), on=c.USER_ID, how="left")
    is_test = F.col(c.SPLIT) == c.TEST
    rows = F.when(is_test, F.col(_EARLY_ROWS)).otherwise(F.col(_TRAIN_ROWS))
    # Newest first, so the rows before the moment are the last ones of the array.
    newest = F.slice(rows, F.size(rows) - F.col(_BEFORE) + 1, F.least(F.col(_BEFORE), F.lit(history_length)))
    history = F.coalesce(_as_interactions(newest), F.array().cast(f"array<{INTERACTION.simpleString()}>"))
    columns = [col.name for col in EXAMPLES.columns]
    return joined.withColumn(c.HISTORY, history).select(*columns)


def _asked(interactions: DataFrame, is_forward: bool, targets_per_example: int) -> DataFrame:
    """Targets of each chunk, its moment, and how many of the rows that it may be shown lie before it."""
    earlier = Window.partitionBy(c.USER_ID).orderBy(c.MOMENT).rangeBetween(Window.unboundedPreceding, -1)
    is_train, is_early = F.col(c.SPLIT) == c.TRAIN, F.col(c.SPLIT) != c.TEST
    counted = interactions.withColumns(
        {
            _TRAIN_BEFORE: F.coalesce(F.count_if(is_train).over(earlier), F.lit(0)),
            _EARLY_BEFORE: F.coalesce(F.count_if(is_early).over(earlier), F.lit(0)),
        }
    )
    held_out = F.lit(0) if is_forward else F.col(c.MOMENT)
    train_chunk = F.floor(F.col(_TRAIN_BEFORE) / targets_per_example)
    before = F.when(F.col(c.SPLIT) == c.TEST, F.col(_EARLY_BEFORE)).otherwise(F.col(_TRAIN_BEFORE))
    target = F.struct(c.MOMENT, c.ITEM_ID, c.IS_LIKED, c.VALUE)
    return (
        counted.withColumn(_CHUNK, F.when(is_train, train_chunk).otherwise(held_out))
        .groupBy(c.USER_ID, c.SPLIT, _CHUNK)
        .agg(
            F.min(c.MOMENT).alias(c.MOMENT),
            F.min(before).cast("int").alias(_BEFORE),
            _as_interactions(F.sort_array(F.collect_list(target))).alias(c.TARGETS),
        )
    )


def _shown(interactions: DataFrame) -> DataFrame:
    """Each user's train rows, and train and valid rows, newest first and by item_id within a moment.

    Collected once per user: a history is a slice of it, so a user of n rows costs n log n, not n times n.
    """
    entry = F.struct((-F.col(c.MOMENT)).alias("age"), c.ITEM_ID, c.IS_LIKED, c.VALUE)
    early = interactions.where(F.col(c.SPLIT) != c.TEST).withColumn(_ENTRY, entry)
    train_entry = F.when(F.col(c.SPLIT) == c.TRAIN, F.col(_ENTRY))
    return early.groupBy(c.USER_ID).agg(
        F.sort_array(F.collect_list(train_entry)).alias(_TRAIN_ROWS),
        F.sort_array(F.collect_list(_ENTRY)).alias(_EARLY_ROWS),
    )


def _as_interactions(rows: Column) -> Column:
    """Drops what the rows were sorted by."""
    return F.transform(rows, lambda row: F.struct(*[row[field].alias(field) for field in INTERACTION.names]))
