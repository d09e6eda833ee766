"""Which rows and users are measured (Spark), and what the collected answers become (numpy), by hand."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession

from flmrec_spark.list_metrics import PER_LIST
from flmrec_spark.stages import evaluation
from flmrec_spark.stages.evaluation import Collected
from flmrec_spark.stages.segments import COLD, HEAD, TAIL

INTERACTIONS = [
    ("ann", "a", 1, True, "train"),
    ("ann", "b", 2, True, "valid"),
    ("ann", "a", 3, True, "test"),  # again: asked pointwise, but no list can hold it
    ("ann", "c", 3, True, "test"),
    ("ann", "c", 4, True, "test"),  # twice held out
    ("ann", "d", 4, False, "test"),
    ("007", "b", 1, True, "test"),
    ("bob", "a", 1, True, "train"),
]


@pytest.fixture(scope="module")
def interactions(spark: SparkSession) -> DataFrame:
    columns = "user_id string, item_id string, moment int, is_liked boolean, split string"
    return spark.createDataFrame(INTERACTIONS, columns)


@pytest.fixture(scope="module")
def rows(interactions: DataFrame) -> DataFrame:
    users = evaluation.draw_users(interactions, split="test", max_users=9, seed=1)
    return evaluation.held_out(interactions, users, split="test", history_splits=("train", "valid"))


def test_held_out_rows_keep_repeats_and_know_what_was_seen(rows: DataFrame) -> None:
    assert sorted(tuple(row) for row in rows.collect()) == [
        ("007", "b", 1, True, False),
        ("ann", "a", 3, True, True),
        ("ann", "c", 3, True, False),
        ("ann", "c", 4, True, False),
        ("ann", "d", 4, False, False),
    ]


def test_users_are_drawn_by_seed(spark: SparkSession) -> None:
    users = [(f"u{i}", "test") for i in range(40)]
    frame = spark.createDataFrame([*users, *users, ("other", "train")], "user_id string, split string")

    def drawn(order: DataFrame, seed: int) -> list[str]:
        users = evaluation.draw_users(order, split="test", max_users=5, seed=seed)
        return sorted(row.user_id for row in users.collect())

    first = drawn(frame, 1)
    assert len(set(first)) == 5
    assert first == drawn(frame.repartition(3), 1)
    assert first != drawn(frame, 2)


def test_prompts_are_asked_about_held_out_items_and_relevant_are_new_liked_ones(
    spark: SparkSession, interactions: DataFrame, rows: DataFrame
) -> None:
    columns = "user_id string, history array<string>, excluded array<string>, candidates array<string>"
    prompts = spark.createDataFrame([("ann", ["b", "a"], ["a", "b"], None), ("007", [], [], None)], columns)
    asked = {row.user_id: row for row in evaluation.pointwise_prompts(prompts, rows).collect()}
    assert {user: sorted(row.candidates) for user, row in asked.items()} == {"ann": ["a", "c", "d"], "007": ["b"]}
    assert all(row.excluded == [] for row in asked.values())
    relevant = evaluation.relevant_items(rows, exclude_seen=True)
    assert sorted(tuple(row) for row in relevant.collect()) == [("007", "b"), ("ann", "c")]
    history = interactions.where("split != 'test'")
    users = evaluation.measured_users(prompts, history).collect()
    assert sorted(tuple(row) for row in users) == [("007", 0), ("ann", 2)]


def test_the_catalogue_has_a_text_and_the_history_of_every_item(spark: SparkSession, interactions: DataFrame) -> None:
    items = [("z", "Zoo", None, 1999), ("a", "An Ant", "Drama Zoo", None), ("b", "-", None, None)]
    frame = spark.createDataFrame(items, "item_id string, title string, genres string, `year` int")
    rows = evaluation.catalogue_rows(frame, interactions.where("split != 'test'")).toArrow()
    found = sorted((row["item_id"], row["text"], row["n_history"]) for row in rows.to_pylist())
    assert found == [("a", "An Ant Drama Zoo", 2), ("b", "-", 1), ("z", "Zoo 1999", 0)]
    items = evaluation.catalogue(rows)
    assert items.ids.to_pylist() == ["a", "b", "z"]
    assert items.counts.tolist() == [2, 1, 0]
    assert items.kinds.tolist() == [HEAD, TAIL, COLD]
    words = items.features.toarray()
    assert np.linalg.norm(words, axis=1).tolist() == pytest.approx([1, 0, 1])  # no word in "-"
    # by hand: idf = ln(4 / (1 + n)) + 1, n of zoo 2 and of the others 1; "An Ant Drama Zoo" against "Zoo 1999"
    zoo, other = math.log(4 / 3) + 1, math.log(4 / 2) + 1
    alike = zoo**2 / (math.hypot(zoo, other, other, other) * math.hypot(zoo, other))
    assert words[0] @ words[2] == pytest.approx(alike)


def test_a_catalogue_without_a_word_is_like_nothing() -> None:
    rows = pa.table({"item_id": ["b", "a"], "text": ["!", "?"], "n_history": [0, 0]})
    assert not evaluation.catalogue(rows).features.toarray().any()


USERS = pa.table({"user_id": ["007", "ann", "é"], "n_history": [0, 5, 2]})
ITEMS = pa.table({"item_id": list("edcba"), "text": list("xxyyz"), "n_history": [0, 1, 2, 1, 9]})
RELEVANT = pa.table({"user_id": ["é", "é", "007", "007"], "item_id": ["e", "a", "b", "gone"]})


@pytest.fixture(scope="module")
def asked() -> Collected:
    rows = pa.table({"user_id": ["é", "007", "é"], "item_id": ["a", "gone", "e"], "is_liked": [True, False, True]})
    return evaluation.collected(rows, RELEVANT, USERS, evaluation.catalogue(ITEMS))


def test_collected_rows_become_arrays_by_the_place_of_the_user(asked: Collected) -> None:
    world = asked.world
    assert world.users.tolist() == [2, 0, 2]
    assert world.labels.tolist() == [True, False, True]
    assert world.kinds.tolist() == [HEAD, COLD, COLD]
    assert world.relevant.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]  # by cold, tail and head
    assert world.n_relevant.tolist() == [2, 0, 2]
    assert world.n_history.tolist() == [0, 5, 2]


def test_lists_become_places_and_know_which_kind_of_item_they_hit(asked: Collected) -> None:
    lists = pa.table({"user_id": ["é", "007", "é"], "rank": [2, 1, 1], "item_id": ["a", "b", "d"]})
    listed = evaluation.places(lists, asked, n=3)
    assert listed.tolist() == [[1, -1, -1], [-1, -1, -1], [3, 0, -1]]
    expected = np.array([[0, 1, 2], [0, 1, 2], [1, 2, 3]])
    found = evaluation.answers(
        asked,
        "flm",
        np.array([0.1, 0.2, 0.3]),
        is_probability=True,
        listed=listed,
        expected=expected,
        cutoffs=[1, 2],
    )
    assert found.hits is not None and found.probabilities is not None
    assert found.hits.tolist() == [[TAIL + 1, 0, 0], [0, 0, 0], [0, HEAD + 1, 0]]
    assert found.of_all_lists == {("coverage", 1): 2 / 5, ("gini", 1): 0.75, ("coverage", 2): 3 / 5, ("gini", 2): 0.5}
    assert {name for name, _ in found.per_list} == set(PER_LIST)
    each = {key: values.tolist() for key, values in found.per_list.items()}
    assert each["average_popularity", 2] == pytest.approx([1, math.nan, (1 + 9) / 2], nan_ok=True)
    assert each["head_share", 2] == pytest.approx([0, math.nan, 1 / 2], nan_ok=True)
    total = 13 + 5  # 13 interactions, and one added to each of 5 items
    assert each["novelty", 1] == pytest.approx([-math.log2(2 / total), math.nan, -math.log2(2 / total)], nan_ok=True)
    assert each["diversity", 2] == pytest.approx([math.nan, math.nan, 1], nan_ok=True)  # "x" and "z"
    assert each["serendipity", 1] == pytest.approx([1, math.nan, 0], nan_ok=True)
    assert each["serendipity", 2] == pytest.approx([0, math.nan, 1 / 2], nan_ok=True)


def test_a_model_without_lists_has_scores_alone(asked: Collected) -> None:
    expected = np.zeros((3, 1), dtype=int)
    found = evaluation.answers(
        asked, "user_mean", np.ones(3), is_probability=False, listed=None, expected=expected, cutoffs=[1]
    )
    assert (found.probabilities, found.hits, found.per_list, found.of_all_lists) == (None, None, {}, {})


def test_where_lists_hold_what_was_seen_it_is_relevant_too(rows: DataFrame) -> None:
    found = {tuple(row) for row in evaluation.relevant_items(rows, exclude_seen=False).collect()}
    assert found == {("ann", "a"), ("ann", "c"), ("007", "b")}


def test_titles_without_spaces_are_alike_by_their_characters() -> None:
    titles = ["红色运动鞋", "红色运动鞋男", "红色运动鞋女款", "咖啡壶"]
    columns = {"item_id": list("abcd"), "n_history": [1] * 4, "text": titles}
    found = evaluation.catalogue(pa.table(columns)).features.toarray()
    alike = found @ found.T
    assert alike[0, 1] > 0.8 and alike[0, 2] > 0.6 and alike[0, 3] == 0.0
