"""What tasks tell of themselves: sums over tasks, the largest of each process, and a heavy user's bounded memory."""

from __future__ import annotations

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec_spark.config import ScoreConfig
from flmrec_spark.ship import ship
from flmrec_spark.stages.scores import Shipped, make_ready, scores
from flmrec_spark.stages.user_prompts import user_prompts
from tests.scored import HISTORY_LENGTH, write_checkpoint
from tests.world import ITEMS

HEAVY = 200_000


@pytest.fixture(scope="module")
def shipped(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    folder = write_checkpoint(tmp_path_factory.mktemp("usage") / "checkpoint")
    items = spark.createDataFrame([(item, "film") for item in ITEMS], "item_id string, title string")
    users = spark.createDataFrame([], "user_id string")
    return ship(spark, checkpoint=str(folder), items=items, users=users, score=ScoreConfig())


def prompts(spark: SparkSession, interactions: DataFrame, users: list[str]) -> DataFrame:
    frame = spark.createDataFrame([(user,) for user in users], "user_id string")
    return user_prompts(frame, interactions, splits=["train"], history_length=HISTORY_LENGTH, exclude_seen=True)


def test_tasks_add_up_and_a_process_loads_once(spark: SparkSession, shipped: Shipped) -> None:
    usage = shipped.usage
    make_ready(spark, shipped, tasks=4).collect()
    assert usage.sums() == {"tasks": 4.0}
    loads = usage.loads()
    assert 1 <= len(loads) <= 4
    light = spark.createDataFrame(
        [("a", "i00", 1, True, 5.0, "train")],
        "user_id string, item_id string, moment int, is_liked boolean, value double, split string",
    )
    frame = prompts(spark, light, ["a", "b", "c"]).repartition(3)
    assert scores(frame, shipped, n=2).count() == 6
    sums = usage.sums()
    assert (sums["users"], sums["pairs"]) == (3.0, 3.0 * len(ITEMS))
    assert sums["busy_s"] > 0
    again = usage.loads()
    assert {name: again[name] for name in loads} == loads  # who had loaded it did not load it again
    peaks = usage.peaks_mb()
    assert set(loads) < set(peaks)  # and the daemon and the JVM above them
    assert all(50 < peaks[name] < 4000 for name in loads)


def test_a_user_of_200_000_interactions_needs_no_more_memory_than_its_ids(
    spark: SparkSession, shipped: Shipped
) -> None:
    row = F.col("id")
    heavy = spark.range(HEAVY).select(
        F.lit("heavy").alias("user_id"),
        F.when(row < 9, F.format_string("i%02d", row)).otherwise(F.concat(F.lit("gone "), row)).alias("item_id"),
        row.cast("int").alias("moment"),
        (row % 2 == 0).alias("is_liked"),
        F.lit(1.0).alias("value"),
        F.lit("train").alias("split"),
    )
    make_ready(spark, shipped, tasks=2).collect()
    before = shipped.usage.peaks_mb()
    found = scores(prompts(spark, heavy, ["heavy", "light"]).coalesce(1), shipped, n=100).collect()
    own = {user: [line for line in found if line.user_id == user] for user in ("heavy", "light")}
    assert len(own["light"]) == len(ITEMS)
    assert {line.item_id for line in own["heavy"]} == set(ITEMS) - {f"i{at:02}" for at in range(9)}
    after = shipped.usage.peaks_mb()
    workers = shipped.usage.loads()
    grown = max(after[name] - before.get(name, after[name]) for name in workers)
    assert grown < 150  # MiB; 200,000 ids are 3 MB of text
