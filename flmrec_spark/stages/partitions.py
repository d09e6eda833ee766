"""Which task scores which users: heavy ones first, users of similar length together, and small tasks at the end.

Users come in an order of their estimated cost, from the heaviest, and the order is cut where the cost of the tasks
says. Neither needs a sort: users of nearly one cost form a bucket, the driver adds up the buckets, and a hash of
the id spreads the users of a bucket evenly over its stretch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark.lm.flops import Shape, pair_flops, user_flops

EQUAL_ROUNDS, HALVINGS = 3, 4  # three quarters of the work in equal tasks, the last quarter in ever smaller ones
_PER_DOUBLING = 8  # buckets per factor of two: costs of a bucket differ by 9 %
_BUCKET, _PLACE, _TASK, _COST, _TOKENS, _PAIRS = (
    f"_flmrec_{name}" for name in ("bucket", "place", "task", "cost", "tokens", "pairs")
)


@dataclass(frozen=True)
class CostModel:
    """What a user costs, before their prompt is tokenised."""

    shape: Shape
    n_items: int  # that may be listed
    item_tokens: float  # mean of an item
    head_tokens: float  # of a user segment without history
    entry_tokens: float  # mean of an entry of the history
    history_length: int  # entries that a prompt shows at most; the row may hold more
    user_tokens: int  # budget of a user segment

    def tokens(self) -> Column:
        """Estimated user tokens of a row of `user_prompts`."""
        shown = F.least(F.size(c.HISTORY), F.lit(self.history_length))
        entries = shown.cast("double") * self.entry_tokens
        return F.least(F.lit(float(self.user_tokens)), entries + self.head_tokens)

    def pairs(self) -> Column:
        return F.when(F.col(c.CANDIDATES).isNull(), self.n_items).otherwise(F.size(c.CANDIDATES)).cast("double")

    def flops(self) -> Column:
        tokens = self.tokens()
        cost: Column = user_flops(self.shape, tokens) + self.pairs() * pair_flops(self.shape, tokens, self.item_tokens)
        return cost


@dataclass(frozen=True)
class Work:
    """All users of a run by bucket of cost, the heaviest first."""

    buckets: Sequence[int]
    costs: Sequence[float]  # FLOPs of a bucket's users together
    users: int
    pairs: int
    user_tokens: int

    @property
    def flops(self) -> float:
        return sum(self.costs)


def measure(prompts: DataFrame, model: CostModel) -> Work:
    """Adds up the users of `user_prompts`; one action, which gives some dozen rows."""
    costed = prompts.select(
        _bucket(model).alias(_BUCKET),
        model.flops().alias(_COST),
        model.tokens().alias(_TOKENS),
        model.pairs().alias(_PAIRS),
    )
    sums = [F.sum(name).alias(name) for name in (_COST, _TOKENS, _PAIRS)]
    found: list[Row] = costed.groupBy(_BUCKET).agg(F.count("*").alias("users"), *sums).collect()
    found.sort(key=lambda row: -row[_BUCKET])
    return Work(
        buckets=[row[_BUCKET] for row in found],
        costs=[row[_COST] for row in found],
        users=sum(row["users"] for row in found),
        pairs=int(sum(row[_PAIRS] for row in found)),
        user_tokens=int(sum(row[_TOKENS] for row in found)),
    )


@dataclass(frozen=True)
class Round:
    """Tasks of equal cost that stand side by side in the order of the users."""

    share: float  # of the work, all of them together
    tasks: int


def rounds(slots: int, *, users: int, tasks: int | None = None) -> list[Round]:
    """The tasks in the order in which Spark starts them; the shares add up to 1.

    After guided self-scheduling: what is left when one slot is done early is small, so the last task ends soon after
    the others, and the first ones are not so large that a lost one costs much.

    Args:
      slots: tasks that run at once.
      tasks: score.partitions, then all are equal.
    """
    if tasks is not None or users < slots * (EQUAL_ROUNDS + HALVINGS + 1):
        return [Round(1.0, tasks or max(1, min(users, slots)))]
    left = 1.0 / (EQUAL_ROUNDS + 1)
    found = [Round(left, slots)] * EQUAL_ROUNDS
    for _ in range(HALVINGS):
        left /= 2
        found.append(Round(left, slots))
    return [*found, Round(left, slots)]


def spread(prompts: DataFrame, model: CostModel, work: Work, plan: Sequence[Round]) -> DataFrame:
    """The prompts in one partition per task of the plan, each with its share of the cost."""
    n_tasks, total = sum(part.tasks for part in plan), work.flops
    if not total:
        return prompts.repartition(n_tasks)
    starts, place = {}, 0.0
    for bucket, cost in zip(work.buckets, work.costs, strict=True):
        starts[bucket] = (place, cost / total)
        place += cost / total
    # The hash's upper 53 bits as a number of 0 .. 1: the same for an id on every machine.
    uniform = F.shiftrightunsigned(F.xxhash64(c.USER_ID), 11).cast("double") / float(1 << 53)
    first, width = (F.create_map(*[F.lit(x) for b, pair in starts.items() for x in (b, pair[at])]) for at in (0, 1))
    placed = prompts.withColumn(_BUCKET, _bucket(model))
    placed = placed.withColumn(_PLACE, first[F.col(_BUCKET)] + width[F.col(_BUCKET)] * uniform)
    chosen = placed.withColumn(_TASK, _task(plan)).repartitionById(n_tasks, _TASK)
    return chosen.sortWithinPartitions(F.desc(_BUCKET), c.USER_ID).select(*prompts.columns)


def _task(plan: Sequence[Round]) -> Column:
    """Number of the task at _PLACE."""
    task, start, first = F.lit(0), 0.0, 0
    for part in plan:
        within = F.floor((F.col(_PLACE) - start) * (part.tasks / part.share)).cast("int")
        task = F.when(F.col(_PLACE) < start, task).otherwise(first + F.least(within, F.lit(part.tasks - 1)))
        start += part.share
        first += part.tasks
    return task


def _bucket(model: CostModel) -> Column:
    return F.floor(F.log2(F.greatest(model.flops(), F.lit(1.0))) * _PER_DOUBLING).cast("int")
