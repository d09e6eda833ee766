"""Lists from Spark against each pair scored on its own by the plain model, whatever the partitions and batches."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import log
from pathlib import Path
from typing import Any

import pytest
from pyspark.serializers import CloudPickleSerializer
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from flmrec_spark.config import ScoreConfig
from flmrec_spark.lm import checkpoint
from flmrec_spark.lm.checkpoint import Checkpoint
from flmrec_spark.lm.segments import TOO_LONG_USER
from flmrec_spark.ship import ship
from flmrec_spark.stages.scores import NO_CANDIDATES, OUTPUT, Shipped, scores
from flmrec_spark.stages.sql_function import register
from flmrec_spark.tables.schemas import INTERACTION
from tests.scored import pair_scores, write_checkpoint
from tests.world import GENRES, ITEMS

FILTER = "stock > 0"
ROWS: list[dict[str, Any]] = [
    {"item_id": item, "title": f"film {GENRES[place % 3]} {place}", "stock": None if place == 7 else place % 5}
    for place, item in enumerate(ITEMS)
] + [{"item_id": "too long", "title": "y" * 60, "stock": 1}]
LISTED = [row["item_id"] for row in ROWS if row["stock"] and row["item_id"] != "too long"]
AGE = "30"
HISTORY = [("i00", True, 5.0), ("gone", True, 4.0), ("i03", False, 1.0)]
LONG_HISTORY = [(item, True, 5.0) for item in ITEMS[:6]]
USERS: dict[str, tuple[Any, ...]] = {  # age, history, excluded, candidates
    "ann": (AGE, HISTORY, ["i01", "gone", "too long", "i00"], None),
    "bob": (AGE, HISTORY[:1], ["i02"], ["i12", "i01", "gone", "i02", "too long", "0042", "i05", "i01"]),
    "用户 'q\"": (None, [], [], None),
    "reader": (AGE, LONG_HISTORY, [], None),
    "forgotten": (AGE, [("gone", True, 4.0)], [], None),
    "verbose": ("x" * 100, HISTORY, [], None),
    "sated": (AGE, HISTORY, ITEMS, None),
    "unasked": (AGE, HISTORY, [], []),
    "hidden": (AGE, [], [], ["i05", "i10", "gone"]),
}
PROMPTS = T.StructType(
    [
        T.StructField("user_id", T.StringType()),
        T.StructField("age", T.StringType()),
        T.StructField("history", T.ArrayType(INTERACTION)),
        T.StructField("excluded", T.ArrayType(T.StringType())),
        T.StructField("candidates", T.ArrayType(T.StringType())),
    ]
)


@pytest.fixture(scope="module")
def items(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(ROWS, "item_id string, title string, stock int")


@pytest.fixture(scope="module")
def users(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame([(user, *rest) for user, rest in USERS.items()], PROMPTS).coalesce(2)


def shipped_from(spark: SparkSession, folder: Path, items: DataFrame, **settings: Any) -> Shipped:
    return ship(
        spark,
        checkpoint=str(folder),
        items=items,
        users=spark.createDataFrame([], "user_id string, age string"),
        score=ScoreConfig(**settings),
        item_filter=FILTER,
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return checkpoint.load(write_checkpoint(tmp_path_factory.mktemp("scores") / "checkpoint"))


@pytest.fixture(scope="module")
def shipped(spark: SparkSession, found: Checkpoint, items: DataFrame) -> Shipped:
    return shipped_from(spark, found.folder, items)


def lists(users: DataFrame, shipped: Shipped, n: int) -> dict[str, list[Any]]:
    by_user: dict[str, list[Any]] = {}
    for row in scores(users, shipped, n=n).collect():
        by_user.setdefault(row.user_id, []).append(row)
    return by_user


def expected(found: Checkpoint, user_id: str) -> dict[str, float]:
    """The score of each item that may be listed for the user."""
    age, history, excluded, candidates = USERS[user_id]
    every = pair_scores(found, ROWS, user_id=user_id, profile={"age": age}, history=history)
    asked = LISTED if candidates is None else candidates
    return {item: score for item, score in every.items() if item in LISTED and item in asked and item not in excluded}


def expect_lists(found: Checkpoint, got: dict[str, list[Any]], n: int, names: Sequence[str]) -> None:
    for user_id in names:
        by_item, own = expected(found, user_id), got[user_id]
        assert [row.rank for row in own] == list(range(1, min(n, len(by_item)) + 1))
        best = sorted(by_item.values(), reverse=True)[:n]
        assert [row.score for row in own] == pytest.approx(best, abs=1e-6), user_id
        assert [by_item[row.item_id] for row in own] == pytest.approx(best, abs=1e-6), user_id
        assert [row.item_id for row in own] == [row.item_id for row in sorted(own, key=lambda r: (-r.score, r.item_id))]
        assert len({row.item_id for row in own}) == len(own)


def test_lists_are_those_of_every_pair_scored_alone(found: Checkpoint, shipped: Shipped, users: DataFrame) -> None:
    got = lists(users, shipped, 4)
    assert set(got) == set(USERS)
    expect_lists(found, got, 4, ["ann", "bob", "用户 'q\"", "reader", "forgotten"])
    assert sorted(row.item_id for row in got["bob"]) == ["i01", "i12"]
    empty = {user: [(row.rank, row.item_id, row.score, row.reason) for row in got[user]] for user in list(USERS)[5:]}
    assert empty == {
        "verbose": [(0, None, None, TOO_LONG_USER)],
        "sated": [(0, None, None, NO_CANDIDATES)],
        "unasked": [(0, None, None, NO_CANDIDATES)],
        "hidden": [(0, None, None, NO_CANDIDATES)],
    }
    told = {user: {(row.has_history, row.history_cut) for row in rows} for user, rows in got.items()}
    assert told == {
        **{user: {(True, 0)} for user in USERS},
        "用户 'q\"": {(False, 0)},
        "forgotten": {(False, 0)},
        "hidden": {(False, 0)},
        "reader": {(True, 3)},  # three entries of 16 tokens fit behind the profile
    }


@pytest.mark.parametrize(("join", "join_layer"), [("full", 2), ("attention", 2), ("layer", 0), ("layer", 3)])
def test_every_form_of_the_model_lists_its_own_pairs(
    spark: SparkSession, items: DataFrame, users: DataFrame, tmp_path: Path, join: str, join_layer: int
) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", join=join, join_layer=join_layer)
    got = lists(users, shipped_from(spark, folder, items), 20)
    expect_lists(checkpoint.load(folder), got, 20, ["ann", "bob", "用户 'q\"", "reader"])


def test_equal_scores_are_listed_by_item_id(spark: SparkSession, users: DataFrame, tmp_path: Path) -> None:
    names = ["ä", "z", "用", "10", "9", "a b", "Z", "é"]
    same = spark.createDataFrame([(name, "same") for name in names], "item_id string, title string")
    folder = write_checkpoint(tmp_path / "checkpoint")
    own = ship(spark, checkpoint=str(folder), items=same, users=users.select("user_id", "age"), score=ScoreConfig())
    got = lists(users.where("user_id = 'ann'"), own, 5)["ann"]
    assert len({row.score for row in got}) == 1
    assert [row.item_id for row in got] == sorted(names)[:5]


@contextmanager
def batches_of(spark: SparkSession, size: int) -> Iterator[None]:
    key = "spark.sql.execution.arrow.maxRecordsPerBatch"
    before = str(spark.conf.get(key))
    spark.conf.set(key, size)
    try:
        yield
    finally:
        spark.conf.set(key, before)


def test_partitions_batches_the_order_of_rows_and_n_change_no_bit(spark: SparkSession, shipped: Shipped) -> None:
    draw = random.Random(3)
    rows: list[tuple[Any, ...]] = []
    for number in range(40):
        seen = draw.sample(ITEMS, draw.randrange(0, 9))
        history = [(item, draw.random() < 0.5, 1.0) for item in seen]
        rows.append((f"u{number}", str(number), history, seen, draw.choice([None, draw.sample(ITEMS, 9)])))

    def run(rows: list[tuple[Any, ...]], partitions: int, size: int, n: int = 6) -> list[tuple[Any, ...]]:
        with batches_of(spark, size):
            frame = spark.createDataFrame(rows, PROMPTS).repartition(partitions)
            return sorted(tuple(row) for row in scores(frame, shipped, n=n).collect())

    first = run(rows, 1, 10_000)
    assert len({row[0] for row in first}) == 40
    draw.shuffle(rows)
    assert run(rows, 3, 7) == first
    assert run(rows[::-1], 7, 1) == first
    assert run(rows, 3, 10_000, n=2) == [row for row in first if row[1] <= 2]


def test_a_file_carries_what_a_broadcast_carries(
    spark: SparkSession, found: Checkpoint, shipped: Shipped, items: DataFrame, users: DataFrame
) -> None:
    by_file = shipped_from(spark, found.folder, items, broadcast_limit_mb=0)
    assert (by_file.bundle.broadcast, shipped.bundle.file) == (None, None)
    assert by_file.bundle.file == f"{by_file.bundle.digest}.tar"
    assert lists(users, by_file, 4) == lists(users, shipped, 4)


def test_without_users_there_are_no_rows_and_the_columns_are_the_same(shipped: Shipped, users: DataFrame) -> None:
    frame = scores(users.where("false"), shipped, n=3)
    assert frame.collect() == []
    assert frame.schema.simpleString() == T._parse_datatype_string(OUTPUT).simpleString()


def test_a_cluster_that_uses_large_arrow_types_gets_the_same_lists(
    spark: SparkSession, found: Checkpoint, shipped: Shipped, items: DataFrame, users: DataFrame
) -> None:
    expected_lists = lists(users, shipped, 3)
    spark.conf.set("spark.sql.execution.arrow.useLargeVarTypes", "true")
    try:
        assert lists(users, shipped_from(spark, found.folder, items), 3) == expected_lists
    finally:
        spark.conf.unset("spark.sql.execution.arrow.useLargeVarTypes")


def test_what_travels_with_every_task_is_small(shipped: Shipped) -> None:
    assert len(CloudPickleSerializer().dumps(shipped.bundle)) < 10_000


def test_a_gpu_that_is_not_there_is_told(
    spark: SparkSession, found: Checkpoint, items: DataFrame, users: DataFrame
) -> None:
    asked = shipped_from(spark, found.folder, items, gpus_per_task=1)
    assert asked.profile is None  # a local master has no resources to ask for
    with pytest.raises(Exception, match=r"EnvironmentFault: score\.gpus_per_task: .* torch finds no CUDA device"):
        scores(users, asked, n=3).collect()


def test_sql_scores_texts_as_the_lists_do(
    spark: SparkSession, found: Checkpoint, shipped: Shipped, users: DataFrame
) -> None:
    register(spark, shipped, name="flmrec_score_test")
    segmenter = found.segmenter()
    user = segmenter.template.render_user({"age": None}) + segmenter.template.render_no_history()
    texts = [(row["item_id"], user, segmenter.template.render_item(row)) for row in ROWS]
    texts += [("no user", None, "x"), ("no item", user, None)]
    spark.createDataFrame(texts, "item string, user string, text string").createOrReplaceTempView("texts")
    query = "SELECT item, flmrec_score_test(user, text) AS score FROM texts WHERE item <> 'i04'"
    got = {row.item: row.score for row in spark.sql(query).collect()}
    every = pair_scores(found, ROWS, user_id="用户 'q\"", profile={"age": None}, history=[])
    biases = found.biases()
    for item in ("i00", "i03", "0042"):
        logit = _logit(every[item]) - found.blend.calibration.slope * biases.item.get(item, 0.0)
        assert _logit(got[item]) == pytest.approx(logit, abs=1e-5)
    assert (got["no user"], got["no item"], got["too long"]) == (None, None, None)
    assert len(got) == len(texts) - 1
    high = spark.sql("SELECT item FROM texts WHERE flmrec_score_test(user, text) > 0.5").collect()
    assert {row.item for row in high} - {"i04"} == {item for item, score in got.items() if score and score > 0.5}


def _logit(probability: float) -> float:
    return log(probability / (1 - probability))
