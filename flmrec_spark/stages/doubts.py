"""What is no fault of the rows and is yet seldom meant: the log tells of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from flmrec_spark import columns as c

log = logging.getLogger("flmrec")

_EARLY, _LATE = 1980, 2100  # years that hardly any log lies before or behind as a whole


def tell_of_odd_times(times: Sequence[datetime]) -> None:
    """Of the first and the last: 20261129 is seconds of August 1970 as well as a day."""
    if not times:
        return
    first, last = min(times), max(times)
    if last.year < _EARLY or first.year > _LATE:
        log.warning(
            "prepare: all times lie between %s and %s; if they should not, prepare.timestamp_format says how they are "
            "written, such as yyyyMMdd",
            first,
            last,
        )


def tell_of_one_label(interactions: DataFrame, n_rows: int, n_liked: int) -> None:
    """A threshold that was forgotten, or is of another scale, shows here and not after a training."""
    if not n_liked:
        log.warning("prepare: no interaction is liked; see prepare.liked_at_least")
    elif n_liked == n_rows and not interactions.where(F.col(c.RATING).isNotNull()).isEmpty():
        log.warning("prepare: every interaction is liked, whatever its rating; see prepare.liked_at_least")
