"""One row of a user, an item and a split where there are several, as in a log of behaviour.

Somebody views an item three times and buys it: that is one answer to the question whether they like it, not three
times no and once yes. Splits come first, so that no row is left out of train because of what happened after it.
"""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark.sections import Repeats

_PLACE = "row:place"


def without_repeats(interactions: DataFrame, repeats: Repeats) -> DataFrame:
    """Rows with `moment` and `split`: unique by user_id, item_id and split but for `all`; moments from 1, without gaps.

    Args:
      repeats: `best` keeps the first row of the highest value, `last` the last row, `all` every row.
    """
    if repeats == "all":
        return interactions
    first = [F.desc(c.VALUE), F.asc(c.MOMENT)] if repeats == "best" else [F.desc(c.MOMENT)]
    pair = Window.partitionBy(c.USER_ID, c.ITEM_ID, c.SPLIT).orderBy(*first)
    kept = interactions.withColumn(_PLACE, F.row_number().over(pair)).where(F.col(_PLACE) == 1).drop(_PLACE)
    in_order = Window.partitionBy(c.USER_ID).orderBy(c.MOMENT)
    return kept.withColumn(c.MOMENT, F.dense_rank().over(in_order))
