"""Interactions -> examples: what a prompt may show of a user at a moment, and what it is asked about.

Shown is what happened strictly before the moment: train rows when the targets are train or valid, train and valid
rows when they are test. Train rows are asked about in chunks, rows of one moment always in one chunk; the moment of
a chunk is that of its first row. A user's valid rows, and their test rows, are asked about in one chunk each, as a
nightly run would score them: at the moment of the first, or, where that is no moment between them, because the splits
of the user interleave or are all of one moment, after everything that may be shown.
"""

from __future__ import annotations

from collections.abc import Callable

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark.tables.schemas import EXAMPLES, INTERACTION

_CHUNK, _BEFORE, _SHOWN, _LAST = "chunk", "before", "shown", "last_shown"
_PAGE, _PLACE, _ROWS = "page", "place", "rows"


def build_examples(interactions: DataFrame, *, history_length: int, targets_per_example: int) -> DataFrame:
    """Rows of the table `examples`, unique by user_id, split and moment.

    Args:
      interactions: rows of the table `interactions`.
      history_length: entries of a history at most, the newest.
      targets_per_example: train rows of a chunk, or more where moments tie.
    """
    asked = _asked(interactions, targets_per_example=targets_per_example)
    is_test, is_train = F.col(c.SPLIT) == c.TEST, F.col(c.SPLIT) == c.TRAIN
    by_train = _with_history(asked.where(~is_test), interactions.where(is_train), length=history_length)
    by_early = _with_history(asked.where(is_test), interactions.where(~is_test), length=history_length)
    return by_train.unionByName(by_early)


def _asked(interactions: DataFrame, *, targets_per_example: int) -> DataFrame:
    """Targets of each chunk, its moment, and how many of the rows that it may be shown lie before it."""
    user = Window.partitionBy(c.USER_ID)
    earlier = user.orderBy(c.MOMENT).rangeBetween(Window.unboundedPreceding, -1)
    is_train, is_test = F.col(c.SPLIT) == c.TRAIN, F.col(c.SPLIT) == c.TEST
    may_show = {c.VALID: is_train, c.TEST: ~is_test}

    def of_shown(count: Callable[[Column], Column]) -> Column:
        return F.when(is_test, count(may_show[c.TEST])).otherwise(count(may_show[c.VALID]))

    counted = interactions.withColumns(
        {
            _BEFORE: of_shown(lambda shown: F.count_if(shown).over(earlier)),
            _SHOWN: of_shown(lambda shown: F.count_if(shown).over(user)),
            _LAST: of_shown(lambda shown: F.max(F.when(shown, F.col(c.MOMENT))).over(user)),
        }
    )
    chunk = F.when(is_train, F.floor(F.col(_BEFORE) / targets_per_example)).otherwise(0)
    target = F.struct(c.MOMENT, c.ITEM_ID, c.IS_LIKED, c.VALUE)
    chunks = (
        counted.withColumn(_CHUNK, chunk)
        .groupBy(c.USER_ID, c.SPLIT, _CHUNK)
        .agg(
            F.min(c.MOMENT).alias(c.MOMENT),
            F.min(_BEFORE).alias(_BEFORE),
            F.first(_SHOWN).alias(_SHOWN),
            F.first(_LAST).alias(_LAST),
            _as_interactions(F.sort_array(F.collect_list(target))).alias(c.TARGETS),
        )
    )
    is_one_moment = (F.col(_BEFORE) == 0) & (F.col(_SHOWN) > 0)
    has_none_between = ~is_train & ((F.col(_LAST) > F.col(c.MOMENT)) | is_one_moment)
    before = F.when(has_none_between, F.col(_SHOWN)).otherwise(F.col(_BEFORE)).cast("int")
    moment = F.when(has_none_between, F.col(_LAST) + 1).otherwise(F.col(c.MOMENT))
    return chunks.withColumns({_BEFORE: before, c.MOMENT: moment}).drop(_CHUNK, _SHOWN, _LAST)


def _with_history(asked: DataFrame, shown: DataFrame, *, length: int) -> DataFrame:
    """The newest of the `shown` rows before each example.

    A user's shown rows are numbered and cut into pages, each of its own `length` rows and of those of the page before;
    so one page holds any history, and a user of a million rows costs no more than many users with as many.
    """
    in_order = Window.partitionBy(c.USER_ID).orderBy(F.asc(c.MOMENT), F.desc(c.ITEM_ID))
    page = _page_of(F.col(_PLACE), length)
    entry = F.struct((-F.col(_PLACE)).alias("age"), c.ITEM_ID, c.IS_LIKED, c.VALUE)
    pages = (
        shown.withColumn(_PLACE, F.row_number().over(in_order))
        .select(c.USER_ID, F.explode(F.array(page, page + 1)).alias(_PAGE), entry.alias("entry"))
        .groupBy(c.USER_ID, _PAGE)
        .agg(F.sort_array(F.collect_list("entry")).alias(_ROWS))
    )
    joined = asked.withColumn(_PAGE, _page_of(F.col(_BEFORE), length)).join(pages, on=[c.USER_ID, _PAGE], how="left")
    newer = -F.col(_ROWS)[0]["age"] - F.col(_BEFORE)  # rows of the page that are not before the example
    none = F.array().cast(f"array<{INTERACTION.simpleString()}>")
    history = F.coalesce(_as_interactions(F.slice(_ROWS, newer + 1, F.lit(length))), none)
    return joined.withColumn(c.HISTORY, history).select(*[col.name for col in EXAMPLES.columns])


def _page_of(place: Column, length: int) -> Column:
    """Page of the row at this place, from 0; -1 for place 0, before all rows."""
    return F.floor((place - 1) / length)


def _as_interactions(rows: Column) -> Column:
    """Drops what the rows were sorted by."""
    return F.transform(rows, lambda row: F.struct(*[row[field].alias(field) for field in INTERACTION.names]))
