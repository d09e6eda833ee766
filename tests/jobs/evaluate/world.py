"""The world of the tests of jobs/evaluate.py: three users, six items, and what the model would say of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from flmrec_spark import columns as c

JOB = Path(__file__).parents[3] / "jobs" / "evaluate.py"
INTERACTIONS = [
    ("ann", "a", 1, True, "train"),
    ("ann", "b", 2, False, "train"),
    ("ann", "c", 3, True, "train"),
    ("ann", "a", 4, True, "test"),  # seen before: asked pointwise, not listed
    ("ann", "d", 5, True, "test"),
    ("ann", "e", 6, False, "test"),
    ("bob", "a", 1, True, "train"),
    ("bob", "c", 2, True, "train"),
    ("bob", "b", 3, True, "test"),
    ("bob", "d", 4, False, "test"),
    ("bob", "x", 5, True, "test"),  # the model refuses item x
    ("o'new", "e", 1, True, "test"),
    ("o'new", "a", 2, False, "test"),
]
SCORES = {
    "ann": {"a": 0.9, "b": 0.1, "c": 0.2, "d": 0.8, "e": 0.3},
    "bob": {"a": 0.5, "b": 0.6, "c": 0.1, "d": 0.7, "e": 0.2},
    "o'new": {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1, "e": 0.9},
}
EVALUATE = {"split": "test", "k": [2, 1, 2], "max_users": 10, "bootstrap": 20, "seed": 1, "against": "popularity"}
# A run that several tests ask for: whichever is first measures, the others find it done.
SHARED = ("evaluate.bootstrap=0", "--run-id", "it's mine")


@dataclass(frozen=True)
class FakeBundle:
    precision: str = "fp32"


@dataclass(frozen=True)
class FakeShipped:
    knows_valid: bool = True
    bundle: FakeBundle = FakeBundle()
    digest: ClassVar[str] = "d1"
    history_length: ClassVar[int] = 5
    rejected: ClassVar[tuple[tuple[str, str], ...]] = (("x", "too long"),)

    def of_train(self) -> FakeShipped:
        return replace(self, knows_valid=False)


def fake_ship(spark: SparkSession, *, items: DataFrame, users: DataFrame, **given: object) -> FakeShipped:
    assert spark and set(given) == {"checkpoint", "score"}
    assert (items.columns, users.columns) == (["item_id", "title"], ["user_id"])
    return FakeShipped()


def fake_scores(users: DataFrame, shipped: FakeShipped, *, n: int) -> DataFrame:
    """What the model would answer: SCORES, for the candidates that are not excluded."""
    assert shipped.digest == "d1"
    flat = [(user, item, score) for user, known in SCORES.items() for item, score in known.items()]
    known = users.sparkSession.createDataFrame(flat, "user_id string, item_id string, score double")
    asked = known.join(users, "user_id").where(
        ~F.array_contains("excluded", F.col("item_id"))
        & F.coalesce(F.array_contains("candidates", F.col("item_id")), F.lit(True))
    )
    rank = F.row_number().over(Window.partitionBy("user_id").orderBy(F.desc("score"), "item_id"))
    return (
        asked.withColumn("rank", rank)
        .where(F.col("rank") <= n)
        .select("user_id", "rank", "item_id", "score", F.col("score").alias("probability"))
    )


def fake_both(
    users: DataFrame,
    shipped: FakeShipped,
    packed: object,
    stacker: object,
    *,
    n: int,
    diverse: object = None,
    rating: object = None,
) -> DataFrame:
    """`hybrid.lists_of_both` of `fake_scores` alone."""
    assert stacker is rating is diverse is None
    lists = fake_scores(users, shipped, n=n).withColumn("is_held", F.lit(False))
    nothing = F.array().cast("array<string>")
    asked = users.withColumn("candidates", F.coalesce(c.HELD, nothing)).withColumn("excluded", nothing)
    held = fake_scores(asked, shipped, n=len(SCORES["ann"])).withColumn("is_held", F.lit(True))
    return lists.union(held).withColumn("model", F.lit("flm"))
