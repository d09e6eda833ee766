"""The model and baselines in one pass: flm's own lists are unchanged, the stack's are the stack of their scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from pickle import PicklingError
from typing import Any

import numpy as np
import pytest
from pyspark import cloudpickle
from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec_spark import stacking
from flmrec_spark.config import ScoreConfig
from flmrec_spark.fitting import Tools, fit_all, send
from flmrec_spark.prompts import load_template
from flmrec_spark.ship import ship
from flmrec_spark.stacking import Prepared, fit_models, with_stack
from flmrec_spark.stages import evaluation, hybrid
from flmrec_spark.stages.baselines.lists import Packed
from flmrec_spark.stages.baselines.stacker import Stacker
from flmrec_spark.stages.hybrid import FLM, HYBRID
from flmrec_spark.stages.scores import Shipped, scores
from flmrec_spark.stages.user_prompts import user_prompts
from tests.prepared import write_prepared
from tests.scored import write_checkpoint
from tests.world import ITEMS, USERS

NAMES = ["user_item_mean", "item_knn"]


@pytest.fixture(scope="module")
def prepared(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = write_prepared(tmp_path_factory.mktemp("hybrid"))
    tables = (spark.read.format("delta").load(str(folder / name)) for name in ("interactions", "items", "users"))
    return Prepared(*tables)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("hybrid") / "checkpoint")


@pytest.fixture(scope="module")
def shipped(spark: SparkSession, prepared: Prepared, folder: Path) -> Shipped:
    return ship(spark, checkpoint=str(folder), items=prepared.items, users=prepared.users, score=ScoreConfig())


@pytest.fixture(scope="module")
def tools(spark: SparkSession) -> Tools:
    return Tools(spark, lambda: load_template("en"), "none")


@pytest.fixture(scope="module")
def packed(spark: SparkSession, prepared: Prepared, tools: Tools) -> Packed:
    world = prepared.world(("train",))
    fitted = fit_all(NAMES, world, tools, timed=lambda _: nullcontext())
    return send(spark, world, fitted, np.ones(len(ITEMS), dtype=bool))


@pytest.fixture(scope="module")
def prompts(prepared: Prepared) -> Iterator[DataFrame]:
    frame = user_prompts(prepared.users, prepared.interactions, splits=["train"], history_length=100, exclude_seen=True)
    yield frame.persist()
    frame.unpersist()


def said(frame: DataFrame) -> dict[tuple[str, str], np.ndarray[Any, Any]]:
    return {(row.user_id, row.item_id): np.array(row.features) for row in frame.collect()}


def test_flm_lists_as_it_does_alone_and_the_stack_by_what_it_makes_of_the_scores(
    prompts: DataFrame, shipped: Shipped, packed: Packed
) -> None:
    stacker = Stacker(np.array([0.1, 0.2, 0.3]), np.array([1.0, 2.0, 0.5]), np.array([0.5, 0.4, 1.0]), -0.2)
    found = hybrid.lists_of_both(prompts, shipped, packed, stacker, n=4).collect()
    alone = scores(prompts, shipped, n=4).collect()
    assert sorted(tuple(row)[1:-1] for row in found if row.model == FLM) == sorted(map(tuple, alone))
    assert not any(row.is_held for row in found)
    asked = said(hybrid.features(prompts, shipped, packed))
    seen = {(row.user_id, item) for row in prompts.collect() for item in row.excluded}
    for user in USERS:
        left = {item: values for (who, item), values in asked.items() if who == user and (who, item) not in seen}
        own = {item: stacker.probability(values[None])[0] for item, values in left.items()}
        best = sorted(own, key=lambda item: (-own[item], item))[:4]
        listed = sorted((row for row in found if (row.model, row.user_id) == (HYBRID, user)), key=lambda row: row.rank)
        assert [row.rank for row in listed] == [1, 2, 3, 4]
        assert [row.item_id for row in listed] == best
        assert [row.score for row in listed] == pytest.approx([own[item] for item in best])


def test_heads_are_the_best_of_each_part_that_may_be_listed(
    prompts: DataFrame, shipped: Shipped, packed: Packed
) -> None:
    seen = {(row.user_id, item) for row in prompts.collect() for item in row.excluded}
    everything = said(hybrid.features(prompts, shipped, packed))
    expected = set()
    for user in USERS:
        left = [(item, values) for (who, item), values in everything.items() if who == user and (who, item) not in seen]
        for part in range(len(left[0][1])):
            ordered = sorted(left, key=lambda pair: (-pair[1][part], pair[0]))
            expected |= {(user, item) for item, _ in ordered[:2]}
    found = said(hybrid.features(prompts, shipped, packed, head=2))
    assert set(found) == expected
    assert len(found) < len(everything) - len(seen)
    assert all(np.array_equal(values, everything[pair]) for pair, values in found.items())


def test_a_part_that_says_the_same_of_all_has_no_best_items() -> None:
    own, nothing = np.array([0.1, 0.9, 0.2, 0.8, 0.3]), np.full(5, np.nan)
    allowed = np.array([True, True, False, True, True])
    found = np.column_stack([own, np.where(allowed, 0.4, 0.7), nothing])  # the second differs where none may be listed
    assert hybrid._heads(found, 2, allowed).tolist() == [1, 3]
    assert hybrid._heads(found, 2, None).tolist() == [0, 1, 2, 3]
    assert hybrid._heads(found[:, 2:], 2, allowed).tolist() == [0, 1]  # nobody says anything: some there must be
    some = np.where(own > 0.25, nothing, own)
    assert hybrid._heads(np.column_stack([some, nothing]), 2, None).tolist() == [0, 2]


def test_items_beside_the_list_are_asked_about_in_the_same_pass(
    spark: SparkSession, prompts: DataFrame, shipped: Shipped, packed: Packed
) -> None:
    stacks = [
        Stacker(np.array([0.1, 0.2, 0.3]), np.array([1.0, 2.0, 0.5]), np.array([0.5, weight, 1.0]), -0.2)
        for weight in (0.4, 0.9)
    ]
    asked = {user: [ITEMS[place], ITEMS[place + 1], "gone"] for place, user in enumerate(USERS[1:])}  # of one user none
    held = spark.createDataFrame(
        [(user, item) for user, own in asked.items() for item in own], "user_id string, item_id string"
    )
    everything = F.array(*map(F.lit, ITEMS))
    prompts = prompts.withColumn("held", F.lit("x"))  # an attribute may have any plain name
    full = prompts.withColumn("excluded", F.when(F.col("user_id") == USERS[2], everything).otherwise(F.col("excluded")))
    beside = evaluation.beside_lists(full, held)

    found = hybrid.lists_of_both(beside, shipped, packed, stacks[0], n=4, rating=stacks[1]).collect()
    plain = hybrid.lists_of_both(full, shipped, packed, stacks[0], n=4).where("rank > 0").collect()
    assert sorted(map(tuple, (row for row in found if not row.is_held))) == sorted(map(tuple, plain))
    assert USERS[2] not in {row.user_id for row in found if not row.is_held}

    alone = scores(evaluation.pointwise_prompts(prompts, held), shipped, n=9).where("rank > 0").collect()
    rated = {(row.user_id, row.item_id): row.score for row in found if row.is_held and row.model == FLM}
    assert rated == {(row.user_id, row.item_id): row.probability for row in alone}
    assert set(rated) == {(user, item) for user, own in asked.items() for item in own[:2]}
    values = said(hybrid.features(prompts, shipped, packed))
    stacked = {(row.user_id, row.item_id): row.score for row in found if row.is_held and row.model == HYBRID}
    assert stacked == pytest.approx({pair: stacks[1].probability(values[pair][None])[0] for pair in rated})

    both = hybrid.features(beside, shipped, packed, head=2).collect()
    assert {(row.user_id, row.item_id) for row in both if row.is_held} == set(rated)
    heads = said(hybrid.features(full, shipped, packed, head=2))
    assert {(row.user_id, row.item_id) for row in both if not row.is_held} == set(heads)
    no_lists = hybrid.features(evaluation.without_lists(beside), shipped, packed, head=2).collect()
    assert {(row.user_id, row.item_id): row.features for row in no_lists if row.is_held} == {
        (row.user_id, row.item_id): row.features for row in both if row.is_held
    }
    assert all(row.is_held for row in no_lists)


@pytest.mark.parametrize(("exclude_seen", "head"), [(True, 1), (True, 50), (False, 50)])
def test_a_stack_for_lists_is_judged_by_what_a_list_could_hold(
    prepared: Prepared, shipped: Shipped, tools: Tools, monkeypatch: pytest.MonkeyPatch, exclude_seen: bool, head: int
) -> None:
    judged: list[tuple[Any, Any, Any]] = []

    def fit_for_lists(*rows: Any) -> Stacker:
        judged.append(rows)
        return original(*rows)

    original = stacking.stacker.fit_for_lists
    monkeypatch.setattr(stacking.stacker, "fit_for_lists", fit_for_lists)
    monkeypatch.setattr(stacking, "HEAD", head)
    data = replace(prepared, exclude_seen=exclude_seen)
    given: dict[str, Any] = {"history_splits": ("train",), "tools": tools, "timed": lambda _: nullcontext()}
    models = fit_models(data, shipped, names=NAMES, **given)
    with_stack(models, data, shipped=shipped, tools=tools, partitions=2)
    rows = prepared.interactions.toPandas()
    liked = rows[(rows["split"] == "valid") & rows["is_liked"]].groupby("user_id")["item_id"].agg(set)
    met = dict(rows[rows["split"] == "train"].groupby("user_id")["item_id"].agg(set)) if exclude_seen else {}
    wanted = {user: items - met.get(user, set()) for user, items in sorted(liked.items())}
    ((features, relevant, users),) = judged
    assert len(features) == len(relevant) == len(users)
    left = [len(ITEMS) - len(met.get(user, set())) for user in wanted]
    if head == 50:  # the world has fewer items
        each = [users == code for code in np.unique(users)]
        assert [int(relevant[own].sum()) for own in each] == [len(own) for own in wanted.values()]
        assert [int(own.sum()) for own in each] == left
    else:  # what was liked behind the heads is left out as all else there is
        assert 0 < len(users) <= len(wanted) * features.shape[1]
        assert relevant.sum() < sum(len(own) for own in wanted.values())


@pytest.mark.parametrize("are_backwards", [False, True])
def test_where_nothing_tells_what_a_list_should_hold_the_lists_are_the_models(
    prepared: Prepared,
    shipped: Shipped,
    tools: Tools,
    prompts: DataFrame,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    are_backwards: bool,
) -> None:
    """What was liked in valid was met in train, and lists leave it out; or every part counts backwards."""
    if are_backwards:
        fit = stacking.stacker.fit_for_lists

        def against(own: Any, relevant: Any, codes: Any) -> Stacker:
            return fit(np.tile(-1.0 * relevant[:, None], own.shape[1]), relevant, codes)

        monkeypatch.setattr(stacking.stacker, "fit_for_lists", against)
    met = prepared.interactions.where("split = 'train'").groupBy("user_id").agg(F.min("item_id").alias("met"))
    rows = prepared.interactions.join(met, "user_id")
    again = F.when((F.col("split") == "valid") & F.col("is_liked"), F.col("met")).otherwise(F.col("item_id"))
    data = prepared
    if not are_backwards:
        data = replace(prepared, interactions=rows.withColumn("item_id", again).drop("met"))
    given: dict[str, Any] = {"history_splits": ("train",), "tools": tools, "timed": lambda _: nullcontext()}
    models = with_stack(
        fit_models(data, shipped, names=NAMES, **given), data, shipped=shipped, tools=tools, partitions=2
    )
    assert models.stackers is not None and models.packed is not None
    assert "its lists are the model's" in caplog.text
    found = hybrid.lists_of_both(prompts, shipped, models.packed, models.stackers.ranking, n=4).collect()
    listed = {
        model: {(row.user_id, row.rank): row.item_id for row in found if row.model == model} for model in (FLM, HYBRID)
    }
    assert listed[FLM] == listed[HYBRID]


def test_of_one_label_there_is_no_rating_stack_and_the_hybrid_gives_no_probability(
    prepared: Prepared, shipped: Shipped, tools: Tools
) -> None:
    liked = replace(prepared, interactions=prepared.interactions.withColumn("is_liked", F.lit(True)))
    given: dict[str, Any] = {
        "names": NAMES,
        "history_splits": ("train", "valid"),
        "tools": tools,
        "timed": lambda _: nullcontext(),
    }
    for data, has_rating in ((liked, False), (prepared, True)):
        models = with_stack(fit_models(data, shipped, **given), data, shipped=shipped, tools=tools, partitions=2)
        assert models.stackers is not None
        assert (models.stackers.rating is not None) == has_rating
        assert (HYBRID in models.with_probability) == has_rating
        assert FLM in models.with_probability


def test_a_stack_is_fitted_on_valid_and_sees_what_separates_it(
    prepared: Prepared, shipped: Shipped, tools: Tools
) -> None:
    models = fit_models(
        prepared,
        shipped,
        names=NAMES,
        history_splits=("train", "valid"),
        tools=tools,
        timed=lambda _: nullcontext(),
    )
    assert models.names == [FLM, *NAMES]
    stacked = with_stack(models, prepared, shipped=shipped, tools=tools, partitions=2)
    assert stacked.names == [FLM, *NAMES, HYBRID]
    assert stacked.stackers is not None
    # users like what those like who like the same; the checkpoint is of random weights
    for stacker in (stacked.stackers.rating, stacked.stackers.ranking):
        assert np.argmax(stacker.weights) == 1 + NAMES.index("item_knn")


def test_what_travels_to_the_tasks_holds_no_resource_profile(
    spark: SparkSession, shipped: Shipped, packed: Packed, prompts: DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that asks for a GPU has a lock and a handle of the JVM, which nothing can pickle."""
    with_gpu = replace(shipped, profile=ResourceProfileBuilder().require(TaskResourceRequests().cpus(1)).build)
    with pytest.raises((TypeError, PicklingError)):
        cloudpickle.dumps(with_gpu)
    sent = []
    monkeypatch.setattr(type(prompts), "mapInArrow", lambda self, function, *_, **__: sent.append(function) or self)
    hybrid.lists_of_both(prompts, with_gpu, packed, None, n=3)
    hybrid.features(prompts, with_gpu, packed)
    assert len(sent) == 2 and all(cloudpickle.dumps(function) for function in sent)
