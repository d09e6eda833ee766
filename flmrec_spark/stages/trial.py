"""A trial on a few users: one task that says which number format the run takes.

It runs where the run will: on an executor's cores or GPU and with a task's threads, not on the driver, which may be
another machine. It runs once, and every executor is told the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark.stages.scores import Shipped, profile_columns
from flmrec_spark.stages.users import users_of

USERS = 32
_SEED = 1


def sample(prompts: DataFrame, n: int) -> DataFrame:
    """n users of `user_prompts`, the same whatever the order of the rows, in one partition."""
    return prompts.orderBy(F.xxhash64(c.USER_ID, F.lit(_SEED)), c.USER_ID).limit(n).coalesce(1)


def chosen_precision(prompts: DataFrame, shipped: Shipped, *, n: int) -> DataFrame:
    """One row: precision, reason; as `lm.trial.choose` for lists of n items."""
    bundle, profile = shipped.bundle, profile_columns(prompts)

    def choose(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from flmrec_spark.lm import trial, worker

        folder, device = bundle.place()
        found, catalogue = worker.opened(folder)
        segmenter = found.segmenter()
        users = []
        for batch in batches:
            for user in users_of(batch, catalogue, profile):
                history = user.interactions(catalogue.fields, segmenter.history_length)
                segment = segmenter.user(user.profile, history)
                if segment is not None:
                    own = user.user_id, segment, user.history, user.is_liked, user.values
                    users.append(trial.Asked(*own))
        choice = trial.choose(folder, users, n=n, packed=bundle.packed, device=device)
        yield pa.RecordBatch.from_pydict({"precision": [choice.precision], "reason": [choice.reason]})

    rows = sample(prompts, USERS).select(c.USER_ID, *profile, c.HISTORY, c.EXCLUDED, c.CANDIDATES)
    return rows.mapInArrow(choose, "precision string, reason string", profile=shipped.profile)
