"""Users in, their lists out: the only place where the model meets Spark.

One row in is one user, at most n rows out are that user's list. Scores never leave the worker: no frame of users x
items ever exists, and nothing but the lists is shuffled or written.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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

NO_CANDIDATES = "no item left to list"
OUTPUT = (
    f"{c.USER_ID} string, {c.RANK} int, {c.ITEM_ID} string, {c.SCORE} double, "
    f"{c.HAS_HISTORY} boolean, history_cut int, {c.REASON} string"
)
_RESERVED = (c.USER_ID, c.HISTORY, c.EXCLUDED, c.CANDIDATES)


@dataclass(frozen=True)
class Bundle:
    """What a task needs to load the model: small, since Spark sends it with every task."""

    digest: str
    precision: str
    packed: bool  # multiply with oneDNN's packed layers; decided on the driver, so that all executors agree
    uses_gpu: bool
    broadcast: Broadcast[bytes] | None  # either this
    file: str | None  # or the name of a distributed file

    def worker(self) -> Any:
        """The loaded worker of this process; runs on executors, inside a task."""
        from flmrec_spark.lm import worker  # here: the driver needs no torch to plan the stage

        folder, device = self.place()
        return worker.load(folder, precision=self.precision, packed=self.packed, device=device)

    def place(self) -> tuple[Path, str]:
        """The unpacked bundle on this executor and the task's device; torch gets the task's threads."""
        from flmrec_spark.lm import worker

        context = TaskContext.get()
        assert context is not None
        gpus = context.resources().get("gpu") if self.uses_gpu else None
        addresses = gpus.addresses if gpus is not None else [] if self.uses_gpu else None
        device = worker.device_of(addresses, os.environ.get("CUDA_VISIBLE_DEVICES"))
        worker.use_threads(max(1, context.cpus()))
        return worker.unpack(Path(SparkFiles.getRootDirectory()) / "flmrec", self.digest, self._open), device

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
    rejected: list[tuple[str, str]]  # (item_id, reason) of items that no prompt can show
    bundle: Bundle
    profile: ResourceProfile | None
    cost: CostModel
    usage: Usage  # what the tasks of this shipment tell of themselves


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
      user_id, rank (1 is best), item_id, score (calibrated probability), has_history, history_cut (interactions
      that the token budget left out), reason. A user without a list has one row of rank 0 that says why.
    """
    profile, bundle, usage = profile_columns(users), shipped.bundle, shipped.usage

    def score_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        worker = bundle.worker()
        pick = of_worker(diversity, worker)
        with usage.task() as meter:
            for batch in batches:
                with meter.busy():
                    lists = [_list(user, worker, n, meter, pick) for user in users_of(batch, worker.catalogue, profile)]
                yield from pa.Table.from_batches(lists).combine_chunks().to_batches() if lists else ()

    planned = users.select(c.USER_ID, *profile, c.HISTORY, c.EXCLUDED, c.CANDIDATES)
    return planned.mapInArrow(score_batches, OUTPUT, profile=shipped.profile)


@dataclass(frozen=True)
class User:
    """A row of `user_prompts`; items are places in the catalogue, H of them in the history, newest first."""

    user_id: str
    profile: dict[str, Any]
    history: Any  # int (H,), -1 for an item that has left the catalogue
    is_liked: list[bool]  # (H,)
    values: list[float | None]  # (H,) what each interaction was worth
    excluded: Any  # int (E,)
    candidates: Any  # int (C,), or None for all

    def interactions(self, fields: list[dict[str, Any]], n: int) -> list[Any]:
        """`segments.Interaction` of the n newest, less those that have left the catalogue."""
        from flmrec_spark.lm.segments import Interaction

        newest = zip(self.history[:n].tolist(), self.is_liked, self.values, strict=False)
        return [Interaction(fields[place], is_liked, value) for place, is_liked, value in newest if place >= 0]


def users_of(batch: pa.RecordBatch, catalogue: Any, profile: list[str]) -> Iterator[User]:
    """The users of a batch of `user_prompts`; item ids become the catalogue's `places` without an object per id."""
    excluded, candidates = (_places(batch.column(name), catalogue) for name in (c.EXCLUDED, c.CANDIDATES))
    entries = batch.column(c.HISTORY).flatten()
    places = catalogue.places(entries.field(c.ITEM_ID))
    liked, values = entries.field(c.IS_LIKED).to_pylist(), entries.field(c.VALUE).to_pylist()
    sizes = batch.column(c.HISTORY).value_lengths().fill_null(0).to_pylist()
    end = 0
    rows = batch.select([c.USER_ID, *profile]).to_pylist()
    for row, size, own, asked in zip(rows, sizes, excluded, candidates, strict=True):
        part, end = slice(end, end + size), end + size
        known = {name: row[name] for name in profile}
        yield User(row[c.USER_ID], known, places[part], liked[part], values[part], own, asked)


def _places(lists: pa.ListArray, catalogue: Any) -> list[Any]:
    flat = catalogue.places(lists.flatten())
    sizes = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    parts = np.split(flat, np.cumsum(sizes)[:-1]) if len(sizes) else []
    return [
        part[part >= 0] if is_valid else None
        for part, is_valid in zip(parts, lists.is_valid().to_pylist(), strict=True)
    ]


@dataclass(frozen=True)
class Answer:
    """What the model says of one user: probabilities of the items of the scorer, or of some, or why there are none."""

    has_history: bool
    n_cut: int
    reason: str | None = None
    asked: Any = None  # the scorer's rows that `values` belong to; None for all
    is_left: Any = None  # bool (items of the scorer,): not excluded
    values: Any = None

    def best(self, values: Any, n: int, reranker: Reranker = PLAIN) -> tuple[Any, Any]:
        """The scorer's rows of the n best values, or of those chosen, best first, and these; `values` as its own."""
        top = reranker.best(values, n, allowed=self.is_left if self.asked is None else None, items=self.asked)
        return (top if self.asked is None else self.asked[top]), values[top]


def _list(user: User, worker: Any, n: int, meter: Meter, reranker: Reranker) -> pa.RecordBatch:
    answer = answer_of(user, worker, meter)
    return list_rows(user, worker, answer, None if answer.values is None else answer.best(answer.values, n, reranker))


def answer_of(user: User, worker: Any, meter: Meter) -> Answer:
    from flmrec_spark.lm.segments import TOO_LONG_USER

    meter.add(users=1)
    history = user.interactions(worker.catalogue.fields, worker.segmenter.history_length)
    segment = worker.segmenter.user(user.profile, history)
    has_history = len(history) > 0
    if segment is None:
        return Answer(has_history, 0, TOO_LONG_USER)
    is_left = np.ones(len(worker.catalogue.listed), dtype=bool)
    is_left[_known(worker.row_of_place[user.excluded])] = False
    asked = None if user.candidates is None else np.unique(_known(worker.row_of_place[user.candidates]))
    if asked is not None:
        asked = asked[is_left[asked]]
    if not (is_left.any() if asked is None else len(asked)):
        return Answer(has_history, segment.n_cut, NO_CANDIDATES)
    bias = worker.biases.user.get(user.user_id, 0.0)
    values = worker.scorer.score(segment.ids, user_bias=bias, items=asked)
    meter.add(pairs=len(values), user_tokens=len(segment.ids))
    return Answer(has_history, segment.n_cut, asked=asked, is_left=is_left, values=values)


def list_rows(user: User, worker: Any, answer: Answer, top: tuple[Any, Any] | None) -> pa.RecordBatch:
    """Rows of OUTPUT; `top` as Answer.best gives it."""
    if top is None:
        return _rows(user, answer.has_history, answer.n_cut, reason=answer.reason)
    listed = worker.catalogue.ids.take(pa.array(worker.catalogue.listed[top[0]]))
    return _rows(user, answer.has_history, answer.n_cut, items=listed, values=top[1])


def _known(rows: Any) -> Any:
    return rows[rows >= 0]


def _rows(
    user: User, has_history: bool, n_cut: int, *, items: Any = None, values: Any = None, reason: str | None = None
) -> pa.RecordBatch:
    n, first = (1, 0) if items is None else (len(items), 1)
    columns = {
        c.USER_ID: pa.array([user.user_id] * n, pa.string()),
        c.RANK: pa.array(np.arange(first, first + n), pa.int32()),
        c.ITEM_ID: pa.nulls(1, pa.string()) if items is None else items,
        c.SCORE: pa.nulls(1, pa.float64()) if items is None else pa.array(values, pa.float64()),
        c.HAS_HISTORY: pa.array([has_history] * n, pa.bool_()),
        "history_cut": pa.array([n_cut] * n, pa.int32()),
        c.REASON: pa.array([reason] * n, pa.string()),
    }
    return pa.RecordBatch.from_pydict(columns)
