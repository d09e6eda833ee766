"""Interactions as people bring them -> typed rows, each accepted or refused with a reason.

Reasons, the first that applies: malformed row, missing user_id, missing item_id, unreadable id (bytes that are no
text), text too long, unreadable rating, rating out of range, unknown event, no rating or event, unreadable timestamp,
unknown split, item not in items, exact duplicate, conflicting duplicate.

A user may meet an item many times, at different times; of rows with one user, item and timestamp the one of the
highest value is kept, and without timestamps one row per user and item, in each of the splits that the rows come
with. Two ratings of one moment contradict each other or are one too many, so the others are duplicates; that something
happened several times in a second, or on a day, is what logs say, so rows without a rating are repeats, which nobody
refuses, unless the source has them in different splits.
"""

from __future__ import annotations

import logging
from functools import reduce

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from flmrec_spark import columns as c
from flmrec_spark.config import PrepareConfig
from flmrec_spark.errors import ConfigError
from flmrec_spark.stages.rejects import CONTENT, REFUSED, REPEATED, among_accepted, content, first_reason, is_blank
from flmrec_spark.tables.spark_errors import spark_message
from flmrec_spark.tables.text_files import LOST, MALFORMED

log = logging.getLogger("flmrec")

_SPELLINGS = {
    "train": c.TRAIN,
    "valid": c.VALID,
    "validation": c.VALID,
    "val": c.VALID,
    "dev": c.VALID,
    "eval": c.VALID,
    "test": c.TEST,
}
# Units of numbers, by size, each with its seconds: in the smaller unit the first is the year 1973, in the larger 5138.
_UNITS = ((1e11, 1.0), (1e14, 1e-3), (1e17, 1e-6), (float("inf"), 1e-9))
# Years 1678 to 2261, what pandas holds: others, such as 0001-01-01 and 9999-12-31, say that a time is not known.
_FIRST_MICROS, _LAST_MICROS = -9_214_560_000_000_000, 9_214_646_399_999_999
_ISO_DATE = r"^\s*\d{4}-\d{1,2}-\d{1,2}"
_RATING_READ, _TIME_READ, _WORTH, _KNOWN = "row:rating", "row:time", "row:worth", "row:known"
_ROW = (c.USER_ID, c.ITEM_ID, c.TIMESTAMP, c.RATING, c.EVENT, c.VALUE, c.IS_LIKED, c.SPLIT)


def check_timestamp_format(spark: SparkSession, pattern: str) -> None:
    """Raises ConfigError unless it is auto, seconds, milliseconds or a pattern that Spark parses with."""
    if pattern in ("auto", "seconds", "milliseconds"):
        return
    try:
        spark.range(1).select(F.try_to_timestamp(F.col("id").cast("string"), F.lit(pattern))).collect()
    except (PySparkException, Py4JJavaError) as fault:
        raise ConfigError(
            f"prepare.timestamp_format: got {pattern!r}, expected auto, seconds, milliseconds or a Spark datetime "
            f"pattern such as yyyy-MM-dd HH:mm:ss: {spark_message(fault)}"
        ) from None


def clean_interactions(frame: DataFrame, config: PrepareConfig, *, items: DataFrame | None) -> DataFrame:
    """Every row of the source with REFUSED and CONTENT; `split` is null unless the config takes it from a column.

    Args:
      frame: what `read_source` gives.
      items: accepted items, unique by item_id; null accepts every item_id.

    Raises:
      ConfigError: the config asks for what the source does not have: a worth of its events, or times.
    """
    _expect_usable(frame, config)
    if c.SPLIT in frame.columns and config.split.by != "column":
        log.warning(
            "prepare.interactions: the column split is not used, as prepare.split.by is %s: with column the rows keep "
            "it; columns: {split: null} says that it means something else",
            config.split.by,
        )
    tagged = _tagged(_parsed(frame, config), config)
    if items is not None:
        known = items.select(c.ITEM_ID, F.lit(True).alias(_KNOWN))
        joined = tagged.join(known, on=c.ITEM_ID, how="left")
        tagged = _refuse(joined, F.when(F.col(_KNOWN).isNull(), F.lit("item not in items")))
    return _without_duplicates(tagged)


def _expect_usable(frame: DataFrame, config: PrepareConfig) -> None:
    has = set(frame.columns)
    if c.EVENT in has and c.RATING not in has and not config.event_values:
        raise ConfigError(
            "prepare.event_values: got none, expected what each event is worth, such as {view: 1, buy: 3}, "
            "as the interactions have events and no ratings"
        )
    least = config.liked_at_least
    if least is not None and c.RATING not in has and not config.event_values:
        raise ConfigError(
            f"prepare.liked_at_least: got {least:g}, expected null, as the interactions have no {c.RATING} and no "
            f"{c.EVENT} with a worth, so that each is worth 1; or name their column in prepare.interactions.columns"
        )
    if config.rating_range is not None and c.RATING not in has:
        raise ConfigError(
            f"prepare.rating_range: got {config.rating_range}, expected null, as the interactions have no {c.RATING}; "
            "or name its column in prepare.interactions.columns"
        )
    most = max(config.event_values.values(), default=least)
    if least is not None and most is not None and most < least and c.RATING not in has:
        raise ConfigError(
            f"prepare.liked_at_least: got {least:g}, expected at most {most:g}: no event of prepare.event_values is "
            "worth more, so nothing would be liked"
        )
    if config.split.by == "global_time" and c.TIMESTAMP not in has:
        raise ConfigError(
            "prepare.split.by: got global_time, expected user_time, leave_last_out or random, "
            "as the interactions have no timestamp"
        )


def _parsed(frame: DataFrame, config: PrepareConfig) -> DataFrame:
    """The columns as given (those that are missing: null) and what was read from them."""
    has = set(frame.columns)
    missing = {name: F.lit(None).cast("string") for name in c.INTERACTION_COLUMNS if name not in has}
    every = frame.withColumns(missing) if missing else frame
    worths = [F.when(F.col(c.EVENT) == event, F.lit(float(worth))) for event, worth in config.event_values.items()]
    kind = every.schema[c.TIMESTAMP].dataType
    return every.select(
        *c.INTERACTION_COLUMNS,
        MALFORMED,
        _number(every.schema[c.RATING].dataType, F.col(c.RATING)).alias(_RATING_READ),
        F.coalesce(*worths, F.lit(None).cast("double")).alias(_WORTH),
        # A frame without times has no unreadable ones.
        (_time(kind, config.timestamp_format) if c.TIMESTAMP in has else F.lit(None).cast("timestamp")).alias(
            _TIME_READ
        ),
        F.lit(c.TIMESTAMP in has).alias("row:has_time"),
        F.lit(isinstance(every.schema[c.RATING].dataType, T.StringType)).alias("row:is_text"),
        F.lit(c.RATING in has or bool(config.event_values)).alias("row:has_value"),
    )


def _number(kind: T.DataType, given: Column) -> Column:
    """Null where it cannot be read. A float is what it is written as: 4.1 is not 4.0999999; NaN is pandas's null."""
    if isinstance(kind, (T.FloatType, T.DoubleType)):
        return F.when(~F.isnan(given), given.cast("string").try_cast("double"))
    if isinstance(kind, T.StringType):
        return F.coalesce(given.try_cast("double"), given.try_cast("boolean").cast("double"))
    return given.try_cast("double")


def _time(kind: T.DataType, pattern: str) -> Column:
    """Null where it cannot be read, or is of a year that no log is of."""
    found = _any_time(kind, pattern)
    return F.when(F.unix_micros(found).between(_FIRST_MICROS, _LAST_MICROS), found)


def _any_time(kind: T.DataType, pattern: str) -> Column:
    given = F.col(c.TIMESTAMP)
    if isinstance(kind, (T.TimestampType, T.TimestampNTZType, T.DateType)):
        return given.cast("timestamp")
    if pattern not in ("auto", "seconds", "milliseconds"):
        return F.try_to_timestamp(given.cast("string"), F.lit(pattern))
    number = given.try_cast("double")
    sizes = [F.when(F.abs(number) < end, number * (seconds * 1e6)) for end, seconds in _UNITS]
    named = {"auto": F.coalesce(*sizes), "seconds": number * 1e6, "milliseconds": number * 1e3}
    micros = F.round(named[pattern])
    in_range = micros.between(_FIRST_MICROS, _LAST_MICROS)
    from_number = F.when(in_range, F.timestamp_micros(micros.try_cast("long")))
    if pattern != "auto" or not isinstance(kind, T.StringType):
        return from_number
    # Spark reads 12:30 as a time of today, so that a run of tomorrow would give another table: a date is required.
    from_text = F.when(given.rlike(_ISO_DATE), given.try_cast("timestamp"))
    return F.coalesce(from_number, from_text)


def _tagged(parsed: DataFrame, config: PrepareConfig) -> DataFrame:
    value = F.coalesce(_RATING_READ, _WORTH, F.when(~F.col("row:has_value"), F.lit(1.0)))
    liked = F.lit(True) if config.liked_at_least is None else value >= config.liked_at_least
    given = F.lower(F.btrim(F.col(c.SPLIT)))
    splits = [F.when(given == spelling, F.lit(split)) for spelling, split in _SPELLINGS.items()]
    from_column = config.split.by == "column"
    split = F.coalesce(*splits) if from_column else F.lit(None).cast("string")
    reason = first_reason(_reasons(config, value) | {"unknown split": F.lit(from_column) & split.isNull()})
    return parsed.select(
        c.USER_ID,
        c.ITEM_ID,
        F.col(_TIME_READ).alias(c.TIMESTAMP),
        F.col(_RATING_READ).alias(c.RATING),
        c.EVENT,
        value.alias(c.VALUE),
        liked.alias(c.IS_LIKED),
        split.alias(c.SPLIT),
        reason.alias(REFUSED),
        content(reason, (*c.INTERACTION_COLUMNS, MALFORMED)).alias(CONTENT),
    )


def _reasons(config: PrepareConfig, value: Column) -> dict[str, Column]:
    """Reason -> condition, in the order in which they apply; those that need other rows follow."""
    rating, given = F.col(_RATING_READ), F.col(c.RATING).cast("string")
    lowest, highest = config.rating_range or (None, None)
    outside = F.isnan(rating) | (F.abs(rating) == float("inf"))
    if lowest is not None and highest is not None:
        outside = outside | ~rating.between(lowest, highest)
    lengths = (F.length(name) > config.max_text_chars for name in (c.USER_ID, c.ITEM_ID, c.EVENT))
    is_blank_event = is_blank(F.col(c.EVENT))
    return {
        "malformed row": F.col(MALFORMED).isNotNull(),
        "missing user_id": is_blank(F.col(c.USER_ID)),
        "missing item_id": is_blank(F.col(c.ITEM_ID)),
        "unreadable id": F.col(c.USER_ID).contains(LOST) | F.col(c.ITEM_ID).contains(LOST),
        "text too long": reduce(Column.__or__, (F.coalesce(too_long, F.lit(False)) for too_long in lengths)),
        "unreadable rating": rating.isNull() & ~is_blank(given) & (F.col("row:is_text") | (given != "NaN")),
        "rating out of range": outside,
        "unknown event": F.lit(bool(config.event_values)) & ~is_blank_event & F.col(_WORTH).isNull(),
        "no rating or event": value.isNull(),
        "unreadable timestamp": F.col("row:has_time") & F.col(_TIME_READ).isNull(),
    }


def _without_duplicates(tagged: DataFrame) -> DataFrame:
    same = (c.RATING, c.EVENT, c.SPLIT)
    order = [F.desc(c.VALUE), F.desc_nulls_last(c.RATING), F.asc_nulls_last(c.EVENT), F.asc_nulls_last(c.SPLIT)]
    # Without a time, the same in two splits of the source happened twice, for all that is known.
    tagged = tagged.withColumn("row:split", F.when(F.col(c.TIMESTAMP).isNull(), F.col(c.SPLIT)))
    frame, window = among_accepted(tagged, keys=(c.USER_ID, c.ITEM_ID, c.TIMESTAMP, "row:split"), order=order)
    # Rows that are equal in all of the order stand next to each other.
    is_same = reduce(Column.__and__, (F.col(name).eqNullSafe(F.lag(name).over(window)) for name in same))
    is_repeat = F.row_number().over(window) > 1
    duplicate = F.when(is_same, F.lit("exact duplicate")).otherwise(F.lit("conflicting duplicate"))
    says_the_same = F.col(c.RATING).isNull() & F.col(c.SPLIT).eqNullSafe(F.first(c.SPLIT).over(window))
    reason = F.when(is_repeat, F.when(says_the_same, F.lit(REPEATED)).otherwise(duplicate))
    # Materialised first: Spark would write the windows out once for every use.
    return _refuse(frame.withColumn("row:repeat", reason), F.col("row:repeat"))


def _refuse(frame: DataFrame, reason: Column) -> DataFrame:
    """Refuses accepted rows for a further reason."""
    first = F.coalesce(REFUSED, reason)
    shown = (c.USER_ID, c.ITEM_ID, c.RATING, c.EVENT, c.TIMESTAMP, c.SPLIT)
    written = F.coalesce(F.col(CONTENT), content(F.nullif(first, F.lit(REPEATED)), shown))
    return frame.select(*_ROW, first.alias(REFUSED), written.alias(CONTENT))
