"""Lists of baselines from Spark: exclusions, candidates, filters, cold users, ties, partitions."""

from __future__ import annotations

import random
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession

from flmrec_spark.fitting import Tools, fit_all, send
from flmrec_spark.prompts import load_template
from flmrec_spark.stages.baselines.collect import world_of
from flmrec_spark.stages.baselines.counts import popularity
from flmrec_spark.stages.baselines.lists import Pack, Packed, lists
from flmrec_spark.stages.baselines.world import World, in_unit
from flmrec_spark.stages.scores import NO_CANDIDATES
from flmrec_spark.stages.user_prompts import user_prompts
from tests.small_world import ITEM_FIELDS, ROWS, user_of

NAMES = [
    "popularity",
    "item_mean",
    "user_item_mean",
    "logistic_regression",
    "als",
    "item_knn",
    "ease",
    "markov",
    "content_tfidf",
]
USERS = [("ann", 20), ("bob", 30), ("cy", 40), ("dee", None), ("eve", 60), ("new o'user", 33)]
PROMPT = "user_id string, age long, history array<struct<item_id string, is_liked boolean, value double>>, excluded "
PROMPT += "array<string>, candidates array<string>"


@pytest.fixture(scope="module")
def interactions(spark: SparkSession) -> DataFrame:
    moments: dict[str, int] = defaultdict(int)
    rows = []
    for user, item, is_liked in ROWS:
        moments[user] += 1
        rows.append((user, item, moments[user], is_liked, 1.0, "train"))
    random.Random(1).shuffle(rows)
    columns = "user_id string, item_id string, moment int, is_liked boolean, value double, split string"
    return spark.createDataFrame(rows, columns)


@pytest.fixture(scope="module")
def users(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame(USERS, "user_id string, age long")


@pytest.fixture(scope="module")
def world(spark: SparkSession, interactions: DataFrame, users: DataFrame) -> World:
    items = spark.createDataFrame(
        [tuple(fields.values()) for fields in reversed(ITEM_FIELDS)],
        "item_id string, title string, genres string, year long",
    )
    return world_of(interactions, items, users)


@pytest.fixture(scope="module")
def pack(spark: SparkSession, world: World) -> Pack:
    tools = Tools(spark, lambda: load_template("en"), "none")
    fitted = fit_all(NAMES, world, tools, timed=lambda _: nullcontext())
    is_listed = np.array([item != "d" for item in world.item_ids])
    return Pack(world.item_ids, is_listed, popularity(world), fitted)


@pytest.fixture(scope="module")
def packed(spark: SparkSession, world: World, pack: Pack) -> Packed:
    return send(spark, world, pack.fitted, pack.is_listed)


def found_lists(frame: DataFrame) -> dict[tuple[str, str], list[tuple[int, Any, Any]]]:
    found: dict[tuple[str, str], list[tuple[int, Any, Any]]] = defaultdict(list)
    for row in sorted(frame.collect(), key=lambda row: row["rank"]):
        found[row["model"], row["user_id"]].append((row["rank"], row["item_id"], row["score"]))
    return found


def test_history_and_catalogue_become_a_world_from_oldest_to_newest(world: World) -> None:
    assert world.item_ids == ["a", "b", "c", "d", "e", "never"]
    assert world.user_ids == ["ann", "bob", "cy", "dee", "eve"]
    rows = [
        (world.user_ids[user], world.item_ids[item], bool(is_liked))
        for user, item, is_liked in zip(world.users, world.items, world.liked, strict=True)
    ]
    assert rows == ROWS
    assert list(world.item_fields) == ITEM_FIELDS
    assert world.user_fields[3] == {"user_id": "dee", "age": None}


def test_every_list_is_the_order_of_the_scores_less_what_is_excluded(
    interactions: DataFrame, users: DataFrame, world: World, pack: Pack, packed: Packed
) -> None:
    prompts = user_prompts(users, interactions, splits=["train"], history_length=100, exclude_seen=True)
    found = found_lists(lists(prompts, packed, names=NAMES, n=3))
    assert set(found) == {(name, user) for name in NAMES for user, _ in USERS}
    for (name, user), entries in found.items():
        own = replace(user_of(world, user), fields={"age": dict(USERS)[user]})
        said, baseline = pack.fitted[name].scores(own), pack.fitted[name]
        if said is None:  # who likes nothing gets what is popular
            said, baseline = pack.fallback.scores(own), pack.fallback
        expected = in_unit(said, is_probability=baseline.is_probability)
        seen = {item for who, item, _ in ROWS if who == user}
        left = [place for place, item in enumerate(world.item_ids) if item not in seen and item != "d"]
        ranked = sorted(left, key=lambda place: (-expected[place], world.item_ids[place]))[:3]
        assert [rank for rank, _, _ in entries] == list(range(1, len(ranked) + 1))
        assert [score for _, _, score in entries] == pytest.approx(expected[ranked], abs=1e-12), (name, user)
        assert all(0 <= score <= 1 for _, _, score in entries)
        order = [(-score, item) for _, item, score in entries]
        assert order == sorted(order)
        assert {item for _, item, _ in entries} <= {world.item_ids[place] for place in left}


def test_new_users_get_the_popular_items_and_ties_go_by_id(spark: SparkSession, packed: Packed) -> None:
    prompts = spark.createDataFrame([("x", None, [], [], None)], PROMPT)
    for name in ("als", "item_knn", "ease", "markov", "content_tfidf", "popularity"):
        found = found_lists(lists(prompts, packed, names=[name], n=5))[name, "x"]
        assert [item for _, item, _ in found] == ["a", "b", "c", "e", "never"], name


def test_candidates_bound_a_list_and_no_candidate_is_told(spark: SparkSession, packed: Packed) -> None:
    rows = [
        ("some", 20, [("gone", True, 1.0), ("a", True, 1.0)], ["a", "gone"], ["a", "d", "c", "unknown", "b"]),
        ("none", 20, [], [], []),
        ("hidden", 20, [], [], ["d"]),
        ("sated", 20, [("a", True, 1.0)], ["a", "b", "c", "e", "never"], None),
    ]
    frame = lists(spark.createDataFrame(rows, PROMPT), packed, names=["item_knn", "item_mean"], n=9)
    found = found_lists(frame)
    assert [item for _, item, _ in found["item_knn", "some"]] == ["b", "c"]
    for user in ("none", "hidden", "sated"):
        assert found["item_mean", user] == [(0, None, None)]
    reasons = {row.user_id: (row.reason, row.has_history, row.history_cut) for row in frame.collect()}
    assert reasons == {
        "some": (None, True, 0),
        "none": (NO_CANDIDATES, False, 0),
        "hidden": (NO_CANDIDATES, False, 0),
        "sated": (NO_CANDIDATES, True, 0),
    }


def test_partitions_and_the_order_of_rows_change_no_bit(
    interactions: DataFrame, users: DataFrame, packed: Packed
) -> None:
    def run(partitions: int) -> list[tuple[Any, ...]]:
        shuffled = interactions.repartition(partitions)
        prompts = user_prompts(users, shuffled, splits=["train"], history_length=100, exclude_seen=False)
        frame = lists(prompts.repartition(partitions), packed, names=NAMES, n=4)
        return sorted(tuple(row) for row in frame.collect())

    assert run(1) == run(5)
