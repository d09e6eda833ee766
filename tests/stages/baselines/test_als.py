"""ALS against the predictions of Spark's own model."""

from __future__ import annotations

import numpy as np
import pytest
from pyspark.ml.recommendation import ALS
from pyspark.sql import SparkSession

from flmrec_spark.stages.baselines import als
from flmrec_spark.stages.baselines.world import User
from tests.small_world import random_world, user_of, world_of


@pytest.fixture(scope="module")
def predictions(spark: SparkSession) -> dict[tuple[int, int], float]:
    """What Spark's own model predicts for every user and item that it knows."""
    likes = random_world(4).likes.tocoo()
    rows = [(int(user), int(item), 1.0) for user, item in zip(likes.row, likes.col, strict=True)]
    frame = spark.createDataFrame(rows, "user int, item int, rating float").coalesce(1)
    settings = {"rank": als.RANK, "maxIter": als.ITERATIONS, "regParam": als.REGULARISATION, "alpha": als.CONFIDENCE}
    columns = {"userCol": "user", "itemCol": "item", "ratingCol": "rating", "coldStartStrategy": "drop"}
    blocks = {"numUserBlocks": 1, "numItemBlocks": 1}
    model = ALS(implicitPrefs=True, seed=als.SEED, **settings, **columns, **blocks).fit(frame)
    pairs = frame.select("user").distinct().crossJoin(frame.select("item").distinct())
    return {(row.user, row.item): row.prediction for row in model.transform(pairs).collect()}


def test_a_user_solved_from_their_likes_scores_as_sparks_own_factors_do(
    spark: SparkSession, predictions: dict[tuple[int, int], float]
) -> None:
    world = random_world(4)
    fitted = als.als(world, spark)
    assert len(predictions) > 20 * 10
    for user in {user for user, _ in predictions}:
        found = fitted.scores(user_of(world, world.user_ids[user]))
        assert found is not None
        own = {item: prediction for (who, item), prediction in predictions.items() if who == user}
        assert found[list(own)] == pytest.approx(list(own.values()), abs=1e-4)
        assert found[-1] == 0.0  # nobody touched it


def test_the_same_likes_give_the_same_factors_whatever_spark_is_told(spark: SparkSession) -> None:
    world = random_world(5)
    first = als.als(world, spark).factors
    before = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", 3)
    try:
        assert (als.als(world, spark).factors == first).all()
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", str(before))


def test_likes_bring_items_together_and_who_likes_nothing_is_not_known(spark: SparkSession) -> None:
    world = world_of()
    fitted = als.als(world, spark)
    found = fitted.scores(user_of(world, "ann"))  # likes a and b; c goes with d, and with a and b at eve's
    assert found is not None
    assert found[0] > found[2] > found[3]
    later = User("later", np.array([0, 1]), np.array([True, True]))
    assert fitted.scores(later) == pytest.approx(found)
    assert fitted.scores(user_of(world, "dee")) is None


def test_without_a_like_every_item_scores_nothing(spark: SparkSession) -> None:
    world = world_of([("ann", "a", False)])
    assert not als.als(world, spark).factors.any()
