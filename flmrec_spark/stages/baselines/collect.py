"""History and catalogue as Spark has them -> the arrays of a World, in the driver's memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame

from flmrec_spark import columns as c
from flmrec_spark.errors import InputError
from flmrec_spark.stages.baselines.world import World

MAX_INTERACTIONS = 20_000_000  # ids and arrays of them take about 3 GB of the driver's memory while they are sorted


def world_of(history: DataFrame, items: DataFrame, users: DataFrame) -> World:
    """Fits take all that was ever seen of the history splits, so this is what bounds them.

    Args:
      history: rows of the table `interactions`; those of items that are not in `items` are left out.
      items, users: the tables.

    Raises:
      InputError: more than MAX_INTERACTIONS rows, or some of users that are not in `users`.
    """
    rows = history.join(items.select(c.ITEM_ID), c.ITEM_ID, "left_semi")
    rows = rows.select(c.USER_ID, c.ITEM_ID, c.MOMENT, c.IS_LIKED)
    n_rows = rows.count()
    if n_rows > MAX_INTERACTIONS:
        raise InputError(
            f"baselines: got {n_rows:,} interactions, expected at most {MAX_INTERACTIONS:,}, "
            "as they are fitted in the driver's memory; evaluate.baselines: [] with evaluate.against: null measures "
            "the model alone, and score.strategy: flm needs none"
        )
    own = users.join(history.select(c.USER_ID).distinct(), c.USER_ID, "left_semi")
    return world_of_tables(rows.toArrow(), items.toArrow(), own.toArrow())


def world_of_tables(history: pa.Table, items: pa.Table, users: pa.Table) -> World:
    """The collected world: rows of items that are there, and the users who have some.

    Raises:
      InputError: rows of users that are not in `users`.
    """
    table = history.sort_by([(c.USER_ID, "ascending"), (c.MOMENT, "ascending"), (c.ITEM_ID, "descending")])
    item_fields, user_fields = items.sort_by(c.ITEM_ID), users.sort_by(c.USER_ID)
    of_users = _places(table[c.USER_ID], user_fields[c.USER_ID])
    if (of_users < 0).any():
        raise InputError("table users: lacks ids that interactions name; run jobs/prepare.py again")
    return World(
        item_ids=item_fields[c.ITEM_ID].to_pylist(),
        user_ids=user_fields[c.USER_ID].to_pylist(),
        items=_places(table[c.ITEM_ID], item_fields[c.ITEM_ID]),
        users=of_users,
        liked=table[c.IS_LIKED].to_numpy(),
        item_fields=item_fields.to_pylist(),
        user_fields=user_fields.to_pylist(),
    )


def _places(ids: pa.ChunkedArray, known: pa.ChunkedArray) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    found = pc.index_in(ids.cast(pa.string()), value_set=known.cast(pa.string()).combine_chunks())
    return np.asarray(pc.fill_null(found, -1).to_numpy(), dtype=np.int64)
