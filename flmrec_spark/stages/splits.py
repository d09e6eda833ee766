"""Accepted interactions -> the order of each user's rows (`moment`), and train, valid or test.

user_time: row k of a user's n, by time then item_id, is train when k/n <= 1 - valid_share - test_share, valid when
k/n <= 1 - test_share, else test; so a user with one row is a test user without history. global_time: the same for
all rows by time, rows at a cut going to the later split, so no train row is at or after a valid row's time.
leave_last_out: a user's last row is test, the one before valid; users of fewer than three rows are all train.
random: by a seeded hash of the row. cold_users, cold_items: by a seeded hash of the user or item, so that whoever or
whatever is held out has no row in an earlier split. column: as the source says; where that has no valid row, the
last valid_share of each user's train rows are, but for the first, as fine-tuning stops and calibrates by some.

By hash, a share is met on average: of a few dozen users or items none may be held out.
"""

from __future__ import annotations

import logging
from fractions import Fraction

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark.config import SplitConfig

log = logging.getLogger("flmrec")

_HASHED = {"random": (c.USER_ID, c.ITEM_ID, c.MOMENT), "cold_users": (c.USER_ID,), "cold_items": (c.ITEM_ID,)}
_HASH_STEPS = 2**53
_VALID_FROM, _TEST_FROM = "row:valid_from", "row:test_from"
_PLACE, _ROWS = "row:k", "row:n"


def with_moments(interactions: DataFrame, *, seed: int) -> DataFrame:
    """Adds `moment`; `timestamp` and `split` may be null.

    Rows without timestamps get an order that is arbitrary, but the same in every run; where the source says their
    splits, train comes first and test last: that much is known of it.
    """
    no_time = F.col(c.TIMESTAMP).isNull()
    places = [F.when(F.col(c.SPLIT) == split, place) for place, split in enumerate(c.SPLITS)]
    order = (
        F.col(c.TIMESTAMP),
        F.when(no_time, F.coalesce(*places)),
        F.when(no_time, F.xxhash64(F.lit(seed), c.USER_ID, c.ITEM_ID)),
        F.when(no_time, F.col(c.ITEM_ID)),
    )
    return interactions.withColumn(c.MOMENT, F.dense_rank().over(Window.partitionBy(c.USER_ID).orderBy(*order)))


def with_splits(interactions: DataFrame, config: SplitConfig) -> DataFrame:
    """Sets `split`; needs `moment`, unique with user_id and item_id."""
    if config.by == "column":
        return _with_valid(interactions, config)
    if config.by == "global_time":
        return _by_global_time(interactions, config)
    if config.by in _HASHED:
        hashed = F.xxhash64(F.lit(config.seed), *_HASHED[config.by])
        draw = F.pmod(hashed, F.lit(_HASH_STEPS)) + 1
        return interactions.withColumn(c.SPLIT, _by_share(draw, F.lit(_HASH_STEPS), config=config))
    by = (
        _by_share(F.col(_PLACE), F.col(_ROWS), config=config)
        if config.by == "user_time"
        else _last_out(F.col(_PLACE), F.col(_ROWS))
    )
    return _numbered(interactions, c.USER_ID).withColumn(c.SPLIT, by).drop(_PLACE, _ROWS)


def _with_valid(interactions: DataFrame, config: SplitConfig) -> DataFrame:
    if not config.valid_share or not interactions.where(F.col(c.SPLIT) == c.VALID).isEmpty():
        return interactions
    log.warning(
        "prepare.split: no row is valid: the last %g of each user's train rows are, for fine-tuning to stop and "
        "calibrate by; prepare.split.valid_share says how much",
        config.valid_share,
    )
    is_first = F.col(_PLACE) == 1  # what else would be learned of a user with one
    is_early = is_first | _is_within(F.col(_PLACE), F.col(_ROWS), share=1 - _fraction(config.valid_share))
    split = F.when((F.col(c.SPLIT) != c.TRAIN) | is_early, F.col(c.SPLIT)).otherwise(c.VALID)
    return _numbered(interactions, c.USER_ID, c.SPLIT).withColumn(c.SPLIT, split).drop(_PLACE, _ROWS)


def _numbered(interactions: DataFrame, *keys: str) -> DataFrame:
    """With the place 1 .. n of each row among those of the same keys, oldest first, and n."""
    group = Window.partitionBy(*keys)
    place = F.row_number().over(group.orderBy(c.MOMENT, c.ITEM_ID)).cast("long")
    return interactions.withColumns({_PLACE: place, _ROWS: F.count(F.lit(1)).over(group)})


def _by_share(k: Column, n: Column, *, config: SplitConfig) -> Column:
    train, early = _cuts(config)
    return F.when(_is_within(k, n, share=train), c.TRAIN).when(_is_within(k, n, share=early), c.VALID).otherwise(c.TEST)


def _last_out(k: Column, n: Column) -> Column:
    return F.when((n < 3) | (k < n - 1), c.TRAIN).when(k < n, c.VALID).otherwise(c.TEST)


def _cuts(config: SplitConfig) -> tuple[Fraction, Fraction]:
    """Share of train, and of train and valid; as written in the config, which in binary 0.1 is not."""
    valid, test = _fraction(config.valid_share), _fraction(config.test_share)
    return 1 - valid - test, 1 - test


def _fraction(share: float) -> Fraction:
    return Fraction(str(share)).limit_denominator(1_000_000)


def _is_within(k: Column, n: Column, *, share: Fraction) -> Column:
    """k/n <= share, in whole numbers: no rounding moves a row. Decimal, as 2**53 times a denominator is no long.

    Two shares of six decimals each have a common denominator of up to twelve.
    """
    times = [F.lit(part).cast("decimal(13,0)") for part in (share.denominator, share.numerator)]
    return k.cast("decimal(19,0)") * times[0] <= n.cast("decimal(19,0)") * times[1]


def _by_global_time(interactions: DataFrame, config: SplitConfig) -> DataFrame:
    cuts = _cut_times(interactions, config)
    time = F.col(c.TIMESTAMP)
    # A cut that no row reaches is null: every row is before it.
    split = F.when(time >= F.col(_TEST_FROM), c.TEST).when(time >= F.col(_VALID_FROM), c.VALID).otherwise(c.TRAIN)
    return interactions.crossJoin(F.broadcast(cuts)).withColumn(c.SPLIT, split).drop(_VALID_FROM, _TEST_FROM)


def _cut_times(interactions: DataFrame, config: SplitConfig) -> DataFrame:
    """One row: the first times that are not train, and not valid. Times are ranked day by day, in parallel."""
    day = F.to_date(c.TIMESTAMP).alias("day")
    times = interactions.groupBy(day, c.TIMESTAMP).agg(F.count(F.lit(1)).alias("rows"))
    by_day = Window.orderBy("day")
    days = times.groupBy("day").agg(F.sum("rows").alias("day_rows"))
    days = days.select(
        "day",
        (F.sum("day_rows").over(by_day) - F.col("day_rows")).alias("before"),
        F.sum("day_rows").over(by_day.rowsBetween(Window.unboundedPreceding, Window.unboundedFollowing)).alias("n"),
    )
    within = F.sum("rows").over(Window.partitionBy("day").orderBy(c.TIMESTAMP))
    ranked = times.join(F.broadcast(days), on="day", how="inner").withColumn("k", F.col("before") + within)
    train, early = _cuts(config)
    first = [
        F.min(F.when(~_is_within(F.col("k"), F.col("n"), share=share), F.col(c.TIMESTAMP))).alias(name)
        for share, name in ((train, _VALID_FROM), (early, _TEST_FROM))
    ]
    return ranked.agg(*first)
