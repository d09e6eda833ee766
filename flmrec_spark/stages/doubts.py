"""What is no fault of the rows and is yet seldom meant: the log tells of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark.config import SplitConfig

log = logging.getLogger("flmrec")

_EARLY, _LATE = 1980, 2100  # years that hardly any log lies before or behind as a whole


def is_odd_time(time: Column) -> Column:
    """Of a year that hardly any log is of; null where there is no time."""
    return ~F.year(time).between(_EARLY, _LATE)


def tell_of_odd_times(times: Sequence[datetime], *, n_odd: int) -> None:
    """Of the first and the last: 20261129 is seconds of August 1970 as well as a day. `n_odd` rows are odd."""
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
    elif n_odd:
        log.warning(
            "prepare: %d rows have times before %d or after %d, and others have not: if several notations are mixed, "
            "prepare.timestamp_format reads one alone",
            n_odd,
            _EARLY,
            _LATE,
        )


def tell_of_odd_splits(rows: Mapping[str, int], config: SplitConfig) -> None:
    """Where a split is much larger or smaller than its share, as with users of few rows; `rows` by split."""
    if config.by not in ("user_time", "global_time", "random"):
        return
    n_rows = sum(rows.values())
    for split, share in ((c.VALID, config.valid_share), (c.TEST, config.test_share)):
        found = rows.get(split, 0) / max(1, n_rows)
        if share > 0 and not share / 2 <= found <= 2 * share:
            log.warning(
                "prepare: %.0f %% of the rows are in split %s, and prepare.split asked for %.0f %%%s",
                100 * found,
                split,
                100 * share,
                ": of a user with five rows or fewer user_time puts none into valid and the last into test; "
                "global_time and random do not ask how many a user has"
                if config.by == "user_time"
                else "",
            )


def tell_of_one_label(interactions: DataFrame, n_rows: int, n_liked: int) -> None:
    """A threshold that was forgotten, or is of another scale, shows here and not after a training."""
    if not n_liked:
        log.warning("prepare: no interaction is liked; see prepare.liked_at_least")
    elif n_liked == n_rows and not interactions.where(F.col(c.RATING).isNotNull()).isEmpty():
        log.warning("prepare: every interaction is liked, whatever its rating; see prepare.liked_at_least")
