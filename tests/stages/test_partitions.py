"""Which task scores which users: every user once, similar ones together, work in the shares that were planned."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from flmrec_spark import columns as c
from flmrec_spark import scoring
from flmrec_spark.lm import native
from flmrec_spark.lm.flops import Shape, pair_flops, user_flops
from flmrec_spark.stages.partitions import CostModel, Round, measure, rounds, spread
from flmrec_spark.tables.schemas import INTERACTION

SHAPE = Shape(3, 3, 24, 24, 576, 1152, 576, 2304, "layer", 2)
MODEL = CostModel(
    SHAPE, n_items=200, item_tokens=12.0, head_tokens=10.0, entry_tokens=6.0, history_length=30, user_tokens=64
)
PROMPTS = T.StructType(
    [
        T.StructField(c.USER_ID, T.StringType()),
        T.StructField("age", T.StringType()),
        T.StructField(c.HISTORY, T.ArrayType(INTERACTION)),
        T.StructField(c.EXCLUDED, T.ArrayType(T.StringType())),
        T.StructField(c.CANDIDATES, T.ArrayType(T.StringType())),
    ]
)
N_USERS = 4000


def tokens(length: int) -> float:
    return min(64.0, 10.0 + 6.0 * length)


def cost(length: int, pairs: int) -> float:
    return float(user_flops(SHAPE, tokens(length)) + pairs * pair_flops(SHAPE, tokens(length), 12.0))


@pytest.fixture(scope="module")
def users() -> list[tuple[str, int, int | None]]:
    """(id, length of the history, candidates or None): from a few pairs to a hundred times as many."""
    draw = random.Random(5)
    return [
        (f"u{number}", draw.randrange(12), None if draw.random() < 0.5 else draw.choice([1, 3, 10, 40, 150]))
        for number in range(N_USERS)
    ]


@pytest.fixture(scope="module")
def prompts(spark: SparkSession, users: list[tuple[str, int, int | None]]) -> DataFrame:
    rows = [
        (user, "30", [("i", True, 1.0)] * length, [], None if asked is None else ["i"] * asked)
        for user, length, asked in users
    ]
    return spark.createDataFrame(rows, PROMPTS)


def makespan(costs: Sequence[float], slots: int) -> float:
    """When the last task ends if a free slot takes the next one, over the mean of the slots."""
    ends = [0.0] * slots
    for one in costs:
        ends[ends.index(min(ends))] += one
    return max(ends) * slots / sum(costs)


def test_the_work_is_the_sum_over_the_users(prompts: DataFrame, users: list[tuple[str, int, int | None]]) -> None:
    work = measure(prompts, MODEL)
    pairs = [200 if asked is None else asked for _, _, asked in users]
    assert (work.users, work.pairs) == (N_USERS, sum(pairs))
    assert work.user_tokens == sum(tokens(length) for _, length, _ in users)
    expected = sum(cost(length, n) for (_, length, _), n in zip(users, pairs, strict=True))
    assert work.flops == pytest.approx(expected)
    assert list(work.buckets) == sorted(set(work.buckets), reverse=True)
    shown = measure(prompts, replace(MODEL, history_length=4))  # rows that hold more, for factors or baselines
    assert shown.user_tokens == sum(tokens(min(length, 4)) for _, length, _ in users)


@given(slots=st.integers(1, 300), users=st.integers(0, 100_000), tasks=st.none() | st.integers(1, 500))
def test_a_plan_gives_all_work_and_never_more_to_a_later_task(slots: int, users: int, tasks: int | None) -> None:
    plan = rounds(slots, users=users, tasks=tasks)
    assert sum(part.share for part in plan) == pytest.approx(1.0)
    sizes = [part.share / part.tasks for part in plan for _ in range(part.tasks)]
    assert sizes == sorted(sizes, reverse=True)
    if tasks is not None:
        assert len(sizes) == tasks
    elif users >= 8 * slots:
        assert len(sizes) == 8 * slots
        assert sizes[-1] * slots == pytest.approx(1 / 64)  # of a slot's work: so long the last one may wait alone
        assert makespan(sizes, slots) == pytest.approx(1.0)


@pytest.mark.parametrize("speeds", [(1.0, 1.0), (1.0, 1.4), (1.0, 0.5)])
def test_the_last_task_does_not_wait_alone_on_uneven_cores(speeds: tuple[float, float]) -> None:
    """Equal tasks leave a core idle for up to a task; small ones at the end do not."""

    def waste(plan: Sequence[Round]) -> float:
        ends = [0.0, 0.0]
        for size in [part.share / part.tasks for part in plan for _ in range(part.tasks)]:
            free = ends.index(min(ends))
            ends[free] += size / speeds[free]
        return max(ends) * sum(speeds) - 1.0

    assert waste(rounds(2, users=6040)) <= 0.03
    assert waste(rounds(2, users=6040)) <= waste(rounds(2, users=6040, tasks=8)) + 1e-9


@pytest.mark.parametrize("plan", [rounds(2, users=N_USERS), rounds(2, users=N_USERS, tasks=5)], ids=["auto", "five"])
def test_tasks_get_their_share_of_the_cost_and_users_of_similar_cost(
    prompts: DataFrame, users: list[tuple[str, int, int | None]], plan: list[Round]
) -> None:
    work = measure(prompts, MODEL)
    placed = spread(prompts, MODEL, work, plan)
    assert placed.columns == prompts.columns
    found = placed.select(c.USER_ID, F.spark_partition_id().alias("task")).collect()
    assert sorted(row[c.USER_ID] for row in found) == sorted(user for user, _, _ in users)
    of_user = {user: cost(length, 200 if asked is None else asked) for user, length, asked in users}
    by_task: dict[int, list[float]] = defaultdict(list)
    for row in found:
        by_task[row["task"]].append(of_user[row[c.USER_ID]])
    sizes = [part.share / part.tasks for part in plan for _ in range(part.tasks)]
    assert sorted(by_task) == list(range(len(sizes)))
    got = [sum(by_task[task]) / work.flops for task in range(len(sizes))]
    assert makespan(got, 2) <= makespan(sizes, 2) + 0.02
    for share, size in zip(got, sizes, strict=True):
        assert share == pytest.approx(size, rel=0.25, abs=0.002)
    for task in range(len(sizes) - 1):  # heavy ones first: neighbours differ by no more than a bucket
        assert min(by_task[task]) * 1.1 >= max(by_task[task + 1])


def test_a_user_is_placed_the_same_whatever_the_order_of_the_rows(prompts: DataFrame) -> None:
    work, plan = measure(prompts, MODEL), rounds(2, users=N_USERS)

    def tasks(frame: DataFrame) -> set[tuple[str, int]]:
        placed = spread(frame, MODEL, work, plan).select(c.USER_ID, F.spark_partition_id())
        return {tuple(row) for row in placed.collect()}

    assert tasks(prompts) == tasks(prompts.orderBy(F.rand(3)).repartition(3))


def test_no_users_are_no_work(prompts: DataFrame) -> None:
    none = prompts.where("false")
    work = measure(none, MODEL)
    assert (work.users, work.pairs, work.flops) == (0, 0, 0.0)
    assert spread(none, MODEL, work, rounds(2, users=0)).collect() == []


def made_ready(n_processes: int, **given: Any) -> Any:
    """A shipment of which so many processes have loaded the model."""
    usage = SimpleNamespace(loads=lambda: {f"host:{number}": 1 for number in range(n_processes)})
    bundle = SimpleNamespace(uses_gpu=given.pop("uses_gpu", False))
    cost = replace(MODEL, shape=replace(SHAPE, join=given.pop("join", "layer")))
    return SimpleNamespace(usage=usage, bundle=bundle, cost=cost, profile=given.pop("profile", None), **given)


def cores(n: int, **conf: str) -> Any:
    """A session of so many cores."""
    conf = {name.replace("_", "."): value for name, value in conf.items()}
    return SimpleNamespace(sparkContext=SimpleNamespace(defaultParallelism=n, getConf=lambda: conf))


def test_tasks_are_as_many_as_gpus_take_where_they_ask_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = []
    monkeypatch.setattr(scoring.partitions, "spread", lambda prompts, model, work, plan: plans.append(plan))
    job: Any = SimpleNamespace(spark=cores(16), config=SimpleNamespace(score=SimpleNamespace(partitions=None)))
    work: Any = SimpleNamespace(users=943)
    for shipped in (made_ready(1, profile=object()), made_ready(4, profile=object()), made_ready(1), made_ready(20)):
        scoring.spread(job, shipped, work, work)
    assert [sum(part.tasks for part in plan) for plan in plans] == [8 * slots for slots in (1, 4, 16, 20)]


@pytest.mark.parametrize(
    ("cpus", "given", "is_told"),
    [
        ("4", {}, True),
        ("1", {}, False),
        (None, {}, False),
        ("4", {"uses_gpu": True}, False),
        ("4", {"join": "full"}, False),  # torch alone, which uses them all
        ("4", {"is_built": False}, False),
    ],
)
def test_cores_that_the_kernel_leaves_idle_are_told(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    cpus: str | None,
    given: dict[str, Any],
    is_told: bool,
) -> None:
    built = object() if given.pop("is_built", True) else None
    monkeypatch.setattr(native, "build", lambda: built)
    spark = cores(16) if cpus is None else cores(16, spark_task_cpus=cpus)
    scoring.tell_of_idle_cores(spark, made_ready(1, **given))
    assert ("spark.task.cpus is 4, but a task scores on one core" in caplog.text) == is_told
