"""Users in, their lists out: where the model meets Spark.

One row in is one user, at most n rows out are that user's list. Scores never leave the worker: no frame of users x
items ever exists, and nothing but the lists is shuffled or written.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark import Broadcast, SparkFiles, TaskContext
from pyspark.resource import ResourceProfile
from pyspark.sql import DataFrame, SparkSession

from flmrec_spark import columns as c
from flmrec_spark.config import DiversityConfig
from flmrec_spark.reranking import PLAIN, Reranker
from flmrec_spark.stages.diversity import of_worker
from flmrec_spark.stages.partitions import CostModel
from flmrec_spark.stages.usage import Meter, Usage
from flmrec_spark.stages.users import User, users_of

NO_CANDIDATES = "no item left to list"
OUTPUT = (
    f"{c.USER_ID} string, {c.RANK} int, {c.ITEM_ID} string, {c.SCORE} double, {c.PROBABILITY} double, "
    f"{c.HAS_HISTORY} boolean, history_cut int, {c.REASON} string"
)
_RESERVED = (c.USER_ID, c.HISTORY, c.EXCLUDED, c.CANDIDATES, c.HELD)


@dataclass(frozen=True)
class Bundle:
    """What a task needs to load the model: small, since Spark sends it with every task."""

    digest: str
    precision: str
    packed: bool  # multiply with oneDNN's packed layers; decided on the driver, so that all executors agree
    uses_gpu: bool
    broadcast: Broadcast[bytes] | None  # either this
    file: str | None  # or the name of a distributed file
    of_train: bool = False  # score with what has not seen the valid split, to judge it by

    def worker(self) -> Any:
        """The loaded worker of this process; runs on executors, inside a task."""
        from flmrec_spark.lm import worker  # here: the driver needs no torch to plan the stage

        folder, device = self.place()
        ways: dict[str, Any] = {"precision": self.precision, "packed": self.packed, "of_train": self.of_train}
        return worker.load(folder, device=device, **ways)

    def place(self) -> tuple[Path, str]:
        """The unpacked bundle on this executor and the task's device; torch gets the task's threads."""
        from flmrec_spark.lm import bundles, worker

        context = TaskContext.get()
        assert context is not None
        gpus = context.resources().get("gpu") if self.uses_gpu else None
        addresses = gpus.addresses if gpus is not None else [] if self.uses_gpu else None
        device = worker.device_of(addresses, os.environ.get("CUDA_VISIBLE_DEVICES"))
        worker.use_device(device)
        worker.use_threads(max(1, context.cpus()))
        return bundles.unpack(Path(SparkFiles.getRootDirectory()) / "flmrec", self.digest, self._open), device

    def _open(self) -> Any:
        if self.broadcast is not None:
            return io.BytesIO(self.broadcast.value)
        assert self.file is not None
        return Path(SparkFiles.get(self.file)).open("rb")


@dataclass(frozen=True)
class Shipped:
    """A checkpoint and a catalogue on their way to the executors; made by `ship.ship`."""

    digest: str  # of the checkpoint
    history_length: int
    n_items: int  # that may be listed
    rejected: list[tuple[str, str]]  # (item_id, reason) of items that pass the filter and that no prompt can show
    bundle: Bundle
    profile: ResourceProfile | None
    cost: CostModel
    usage: Usage  # what the tasks of this shipment tell of themselves

    def of_train(self) -> Shipped:
        """The same, with what has not seen the valid split, to judge that by."""
        return replace(self, bundle=replace(self.bundle, of_train=True))


def profile_columns(prompts: DataFrame) -> list[str]:
    """The columns of `user_prompts` that a template may show."""
    return [column for column in prompts.columns if column not in _RESERVED]


def make_ready(spark: SparkSession, shipped: Shipped, *, tasks: int) -> DataFrame:
    """Loads the model in every Python process and makes the item states of every executor, one row per task.

    Args:
      tasks: those that run at once: each finds a free slot, and all of an executor share the making of the states.
    """
    bundle, usage = shipped.bundle, shipped.usage

    def load(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with usage.task():
            for batch in batches:
                bundle.worker()
                yield batch

    return spark.range(0, tasks, 1, tasks).mapInArrow(load, "id long", profile=shipped.profile)


def scores(users: DataFrame, shipped: Shipped, *, n: int, diversity: DiversityConfig | None = None) -> DataFrame:
    """The n best items of each user, or the n that diversity chooses, by score descending, then item_id.

    Args:
      users: rows of `user_prompts.user_prompts`.
      n: length of a list at most; shorter when fewer items are left.

    Returns:
      user_id, rank (1 is best), item_id, score (orders the list), probability (calibrated, that the user likes the
      item), has_history, history_cut (interactions that the token budget left out), reason. A user without a list has
      one row of rank 0 that says why.
    """
    profile, bundle, usage = profile_columns(users), shipped.bundle, shipped.usage

    def score_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with usage.task() as meter:
            worker = bundle.worker()
            pick = of_worker(diversity, worker)
            for batch in batches:
                with meter.busy():
                    users = list(users_of(batch, worker.catalogue, profile))
                    answers = zip(users, answers_of(users, worker, meter), strict=True)
                    best = ((own, said, said.said and said.best(said.said.score, n, pick)) for own, said in answers)
                    lists = [list_rows(own, worker, said, top) for own, said, top in best]
                yield from pa.Table.from_batches(lists).combine_chunks().to_batches() if lists else ()

    planned = users.select(c.USER_ID, *profile, c.HISTORY, c.EXCLUDED, c.CANDIDATES)
    return planned.mapInArrow(score_batches, OUTPUT, profile=shipped.profile)


@dataclass(frozen=True)
class Answer:
    """What the model says of one user's items: all of the scorer's, or some, or why it says nothing."""

    has_history: bool
    n_cut: int
    reason: str | None = None
    asked: Any = None  # the scorer's rows that `said` belongs to; None for all
    allowed: Any = None  # bool, of the same rows: may stand in the list; None for all of `asked`
    held: Any = None  # places in `said` of the items that are asked about beside the list, ascending; None for none
    said: Any = None  # judge.Said

    def best(self, values: Any, n: int, reranker: Reranker = PLAIN) -> Best:
        """The n items with the best values, or those chosen; `values` as the answer's own."""
        top = reranker.best(values, n, allowed=self.allowed, items=self.asked)
        return Best(top if self.asked is None else self.asked[top], values[top], self.said.probability[top])


@dataclass(frozen=True)
class Best:
    """Items of a list, best first."""

    rows: Any  # the scorer's
    scores: Any
    probabilities: Any


def answers_of(users: Sequence[User], worker: Any, meter: Meter) -> Iterator[Answer]:
    """What the model says of each user, in their order: on a GPU many are scored together."""
    asked = [_asked(user, worker) for user in users]
    said = worker.judge.says_each([question for _, question, _ in asked if question is not None])
    for answer, question, excluded in asked:
        meter.add(users=1)
        if question is None:
            yield answer
            continue
        own = next(said)
        meter.add(pairs=len(own.score), user_tokens=len(question.segment))
        allowed = answer.allowed
        if answer.asked is None:
            allowed = np.ones(len(worker.catalogue.listed), dtype=bool)  # not before: it is as long as the catalogue
            allowed[excluded] = False
        yield replace(answer, allowed=allowed, said=own)


def _asked(user: User, worker: Any) -> tuple[Answer, Any, Any]:
    """The answer but for what the model says, the `judge.Asked` of it, and the scorer's rows that may not be listed.

    Instead of an `Asked` None where there is nothing to ask.
    """
    from flmrec_spark.lm.judge import Asked
    from flmrec_spark.lm.segments import TOO_LONG_USER

    history = user.interactions(worker.catalogue.fields, worker.segmenter.history_length)
    segment = worker.segmenter.user(user.profile, history)
    has_history = len(history) > 0
    if segment is None:
        return Answer(has_history, 0, TOO_LONG_USER), None, None
    excluded = np.unique(_known(worker.row_of_place[user.excluded]))
    held = None if user.held is None else np.unique(_known(worker.row_of_place[user.held]))
    asked, allowed, n_left = None, None, len(worker.catalogue.listed) - len(excluded)
    if user.candidates is not None:
        asked = np.setdiff1d(_known(worker.row_of_place[user.candidates]), excluded)
        n_left = len(asked)
        if held is not None:
            own, asked = asked, np.union1d(asked, held)
            allowed, held = np.isin(asked, own), np.searchsorted(asked, held)
    if n_left == 0 and (held is None or not len(held)):
        return Answer(has_history, segment.n_cut, NO_CANDIDATES), None, None
    taste = worker.judge.taste(user.history, user.is_liked, user.values, segment.profile)
    question = Asked(segment.ids, user.user_id, taste, asked)
    return Answer(has_history, segment.n_cut, asked=asked, allowed=allowed, held=held), question, excluded


def list_rows(user: User, worker: Any, answer: Answer, top: Best | None) -> pa.RecordBatch:
    """Rows of OUTPUT; `top` as Answer.best gives it."""
    if top is None:
        return _rows(user, answer.has_history, answer.n_cut, reason=answer.reason)
    listed = worker.catalogue.ids.take(pa.array(worker.catalogue.listed[top.rows]))
    return _rows(user, answer.has_history, answer.n_cut, items=listed, top=top)


def _known(rows: Any) -> Any:
    return rows[rows >= 0]


def _rows(
    user: User, has_history: bool, n_cut: int, *, items: Any = None, top: Best | None = None, reason: str | None = None
) -> pa.RecordBatch:
    n, first = (1, 0) if top is None else (len(items), 1)
    scores, probabilities = (None, None) if top is None else (top.scores, top.probabilities)
    columns = {
        c.USER_ID: pa.array([user.user_id] * n, pa.string()),
        c.RANK: pa.array(np.arange(first, first + n), pa.int32()),
        c.ITEM_ID: pa.nulls(n, pa.string()) if items is None else items,
        c.SCORE: pa.nulls(n, pa.float64()) if scores is None else pa.array(scores, pa.float64()),
        c.PROBABILITY: pa.nulls(n, pa.float64()) if probabilities is None else pa.array(probabilities, pa.float64()),
        c.HAS_HISTORY: pa.array([has_history] * n, pa.bool_()),
        "history_cut": pa.array([n_cut] * n, pa.int32()),
        c.REASON: pa.array([reason] * n, pa.string()),
    }
    return pa.RecordBatch.from_pydict(columns)
