"""The simple recommenders that the model must beat, fitted on history alone.

With likes and n counted over the history, m the global mean (likes + 1) / (n + 2):

popularity       interactions of the item
item_mean        P(liked | item) = (likes + 5 m) / (n + 5)
user_mean        P(liked | user), likewise; it cannot order items, so it has no lists
user_item_mean   P(liked | user, item) if user and item tell independently of each other (naive Bayes):
                 logit = logit(item_mean) + logit(user_mean) - logit(m); its lists are item_mean's

Means are shrunk to m as if by 5 more interactions; what was never seen has the mean m.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from flmrec_spark import columns as c

POPULARITY, ITEM_MEAN, USER_MEAN, USER_ITEM_MEAN = "popularity", "item_mean", "user_mean", "user_item_mean"
NAMES = (POPULARITY, ITEM_MEAN, USER_MEAN, USER_ITEM_MEAN)
WITH_PROBABILITY = frozenset({ITEM_MEAN, USER_MEAN, USER_ITEM_MEAN})
LISTED_BY = {POPULARITY: POPULARITY, ITEM_MEAN: ITEM_MEAN, USER_ITEM_MEAN: ITEM_MEAN}
GLOBAL_MEAN = "global_mean"
SHRINKAGE = 5.0


def item_scores(history: DataFrame, items: DataFrame) -> DataFrame:
    """item_id, popularity, item_mean: one row per item, also for those that nobody touched."""
    return _shrunk_mean(history, items, key=c.ITEM_ID, name=ITEM_MEAN).select(
        c.ITEM_ID, F.col("n").cast("double").alias(POPULARITY), ITEM_MEAN
    )


def user_scores(history: DataFrame, users: DataFrame) -> DataFrame:
    """user_id, user_mean, global_mean: one row per user, also for those without history."""
    return _shrunk_mean(history, users, key=c.USER_ID, name=USER_MEAN).select(c.USER_ID, USER_MEAN, GLOBAL_MEAN)


def score_rows(rows: DataFrame, *, items: DataFrame, users: DataFrame) -> DataFrame:
    """The rows with one column per baseline; `items` and `users` as `item_scores` and `user_scores` give them."""
    logit = _logit(F.col(ITEM_MEAN)) + _logit(F.col(USER_MEAN)) - _logit(F.col(GLOBAL_MEAN))
    return (
        rows.join(items, c.ITEM_ID, "left")
        .join(users, c.USER_ID, "left")
        .withColumn(USER_ITEM_MEAN, 1.0 / (1.0 + F.exp(-logit)))
        .drop(GLOBAL_MEAN)
    )


def top_n(users: DataFrame, items: DataFrame, *, by: str, n: int, depth: int) -> DataFrame:
    """user_id, rank, item_id: the first n items by score descending, then item_id, without those in `excluded`.

    A list is one order of all items less the user's own, so `depth` = n + the longest `excluded` is as far as
    anyone looks.
    """
    best = items.orderBy(F.desc(by), F.asc(c.ITEM_ID)).limit(depth)
    order = best.agg(F.sort_array(F.collect_list(F.struct((-F.col(by)).alias("key"), c.ITEM_ID))).alias("order"))
    own = F.slice("order", 1, F.size(c.EXCLUDED) + n)
    left = F.slice(F.array_except(own[c.ITEM_ID], c.EXCLUDED), 1, n)
    lists = users.select(c.USER_ID, c.EXCLUDED).crossJoin(F.broadcast(order))
    return lists.select(c.USER_ID, F.posexplode(left).alias("place", c.ITEM_ID)).select(
        c.USER_ID, (F.col("place") + 1).alias(c.RANK), c.ITEM_ID
    )


def _shrunk_mean(history: DataFrame, everyone: DataFrame, *, key: str, name: str) -> DataFrame:
    likes = F.sum(F.col(c.IS_LIKED).cast("double"))
    overall = history.agg(((F.coalesce(likes, F.lit(0.0)) + 1) / (F.count("*") + 2)).alias(GLOBAL_MEAN))
    counted = history.groupBy(key).agg(F.count("*").alias("n"), likes.alias("likes"))
    mean = (F.col("likes") + SHRINKAGE * F.col(GLOBAL_MEAN)) / (F.col("n") + SHRINKAGE)
    return (
        everyone.select(key)
        .join(counted, key, "left")
        .na.fill({"n": 0, "likes": 0.0})
        .crossJoin(F.broadcast(overall))
        .withColumn(name, mean)
    )


def _logit(probability: Column) -> Column:
    return F.log(probability / (1.0 - probability))
