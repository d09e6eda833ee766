"""Users in, the lists of each baseline out: one pass over the users for all of them.

Fitted baselines travel as one file, which every Python process of an executor maps into its memory. A baseline that
knows too little of a user (no history, or nothing liked in it) gives them popularity's scores, so everyone has a list.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import joblib
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark import SparkFiles
from pyspark.sql import DataFrame

from flmrec_spark import columns as c
from flmrec_spark.reranking import PLAIN, Reranker
from flmrec_spark.stages import scores
from flmrec_spark.stages.baselines.counts import Popularity
from flmrec_spark.stages.baselines.world import Baseline, Bools, Floats, Places, User, in_unit
from flmrec_spark.stages.users import User as Row
from flmrec_spark.stages.users import users_of

MODEL = "model"
OUTPUT = f"{MODEL} string, {scores.OUTPUT}"


@dataclass(frozen=True)
class Pack:
    """What travels: the catalogue, by ascending id, and the baselines fitted on it."""

    item_ids: Sequence[str]  # [N]
    is_listed: Bools  # [N] may stand in a list
    fallback: Popularity
    fitted: Mapping[str, Baseline]
    reranker: Reranker = PLAIN  # of the N items

    @cached_property
    def ids(self) -> pa.Array:
        return pa.array(self.item_ids, pa.string())

    def places(self, ids: pa.Array) -> Places:
        """Place of each id, -1 for an unknown one."""
        found = pc.fill_null(pc.index_in(ids.cast(pa.string()), value_set=self.ids), -1)
        return np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.int64)

    def user(self, row: Row) -> User:
        """What baselines read of a row of `user_prompts`."""
        is_known = row.history >= 0
        liked = np.array(row.is_liked, dtype=bool)
        return User(row.user_id, row.history[is_known].astype(np.int64), liked[is_known], row.profile)

    def values(self, name: str, user: User) -> Floats:
        """Scores of one baseline for all items in [0, 1], (N,)."""
        baseline: Baseline = self.fitted[name]
        found = baseline.scores(user)
        if found is None:
            baseline, found = self.fallback, self.fallback.scores(user)
        return in_unit(found, is_probability=baseline.is_probability)


@dataclass(frozen=True)
class Packed:
    """A pack on its way; made by `fitting.send`. Small, since Spark sends it with every task."""

    digest: str
    file: str  # name of a distributed file

    def open(self) -> Pack:
        """The pack of this process; runs on executors, inside a task."""
        if self.digest not in _OPENED:
            _OPENED.clear()  # a new run's baselines replace the old ones' memory
            # Written by the driver of this very application, as every closure that Spark unpickles here is.
            _OPENED[self.digest] = joblib.load(SparkFiles.get(self.file), mmap_mode="r")
        return _OPENED[self.digest]


_OPENED: dict[str, Pack] = {}


def lists(users: DataFrame, packed: Packed, *, names: Sequence[str], n: int, diverse: bool = False) -> DataFrame:
    """The n best items of each user by each of the named baselines, by score descending, then item_id.

    Args:
      users: rows of `user_prompts.user_prompts`; of a history of any length all is read.
      n: length of a list at most; shorter when fewer items are left.
      diverse: the n that the pack's reranker chooses instead.

    Returns:
      model and the columns of `scores.scores`: score is in [0, 1], see `world.in_unit`; history_cut is 0.
    """
    profile, names = scores.profile_columns(users), list(names)

    def list_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        pack = packed.open()
        reranker = pack.reranker if diverse else PLAIN
        for batch in batches:
            found = [_lists(user, pack, names, n, reranker) for user in users_of(batch, pack, profile)]
            yield from pa.Table.from_batches(found).combine_chunks().to_batches() if found else ()

    planned = users.select(c.USER_ID, *profile, c.HISTORY, c.EXCLUDED, c.CANDIDATES)
    return planned.mapInArrow(list_batches, OUTPUT)


def _lists(row: Row, pack: Pack, names: Sequence[str], n: int, reranker: Reranker) -> pa.RecordBatch:
    user = pack.user(row)
    is_left = pack.is_listed.copy()
    is_left[row.excluded] = False
    if row.candidates is not None:
        asked = np.zeros_like(is_left)
        asked[row.candidates] = True
        is_left &= asked
    if not is_left.any():
        return _rows([(name, 0, None, None) for name in names], user, scores.NO_CANDIDATES)
    entries: list[tuple[str, int, str | None, float | None]] = []
    for name in names:
        values = pack.values(name, user)
        top = reranker.best(values, n, allowed=is_left)
        entries += [(name, rank, pack.item_ids[place], values[place]) for rank, place in enumerate(top.tolist(), 1)]
    return _rows(entries, user, None, {name for name in names if pack.fitted[name].is_probability})


def _rows(
    entries: Sequence[tuple[str, int, Any, Any]], user: User, reason: str | None, with_probability: Collection[str] = ()
) -> pa.RecordBatch:
    models, ranks, items, values = zip(*entries, strict=True)
    probable = [model in with_probability for model in models]
    n = len(entries)
    columns = {
        MODEL: pa.array(models, pa.string()),
        c.USER_ID: pa.array([user.user_id] * n, pa.string()),
        c.RANK: pa.array(ranks, pa.int32()),
        c.ITEM_ID: pa.array(items, pa.string()),
        c.SCORE: pa.array(values, pa.float64()),
        c.PROBABILITY: pa.array(
            [value if is_one else None for value, is_one in zip(values, probable, strict=True)], pa.float64()
        ),
        c.HAS_HISTORY: pa.array([len(user.items) > 0] * n, pa.bool_()),
        "history_cut": pa.array([0] * n, pa.int32()),
        c.REASON: pa.array([reason] * n, pa.string()),
    }
    return pa.RecordBatch.from_pydict(columns)
