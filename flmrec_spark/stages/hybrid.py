"""The language model and the baselines asked about the same pairs, and a stack of what they say.

One pass over the users: the model's scores of a user are computed once and serve its own list and the stack's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame

from flmrec_spark import columns as c
from flmrec_spark import ranking
from flmrec_spark.errors import ConflictError
from flmrec_spark.stages import scores
from flmrec_spark.stages.baselines import lists
from flmrec_spark.stages.baselines.lists import MODEL, Pack, Packed
from flmrec_spark.stages.baselines.stacker import Stacker
from flmrec_spark.stages.baselines.world import Floats
from flmrec_spark.stages.diversity import Diverse, diversified, of_worker
from flmrec_spark.stages.scores import Answer, Shipped
from flmrec_spark.stages.users import User, users_of

FLM, HYBRID = "flm", "hybrid"
FEATURES = "features"
IS_HELD = "is_held"  # a row of an item of c.HELD, and not of a list


_Rows = Callable[[User, Answer, Any, Any], Iterator[pa.RecordBatch]]


def features(users: DataFrame, shipped: Shipped, packed: Packed, *, head: int | None = None) -> DataFrame:
    """user_id, item_id, is_held, features: flm's log-odds of liking, those of its listing where it has one, then each
    fitted baseline's scores in their order, array of doubles.

    Args:
      users: rows of `user_prompts.user_prompts`. A row for each candidate that is not excluded; without candidates,
        for every item that may be listed; and one for each item of c.HELD, where there is such a column.
      head: of these only items that are among so many best of one of the columns: all that a list by a sum of
        columns with weights of at least 0 can be expected to hold.
    """

    def rows(user: User, answer: Answer, worker: Any, pack: Pack) -> Iterator[pa.RecordBatch]:
        if answer.said is not None:
            found, places = _features(user, worker, answer, pack), _places(worker, answer)
            kept = slice(None) if answer.asked is None or answer.allowed is None else answer.allowed
            if head is not None:
                kept = _heads(found, head, answer.allowed)
            yield _rows_of(user, worker, places[kept], found[kept], is_held=False)
            if answer.held is not None:
                yield _rows_of(user, worker, places[answer.held], found[answer.held], is_held=True)

    return _mapped(
        users,
        shipped,
        packed,
        rows,
        f"{c.USER_ID} string, {c.ITEM_ID} string, {IS_HELD} boolean, {FEATURES} array<double>",
    )


def _rows_of(user: User, worker: Any, places: Any, found: Floats, *, is_held: bool) -> pa.RecordBatch:
    offsets = pa.array(np.arange(len(found) + 1) * found.shape[1], pa.int32())
    return pa.RecordBatch.from_pydict(
        {
            c.USER_ID: pa.array([user.user_id] * len(found), pa.string()),
            c.ITEM_ID: worker.catalogue.ids.take(pa.array(places)),
            IS_HELD: pa.array([is_held] * len(found), pa.bool_()),
            FEATURES: pa.ListArray.from_arrays(offsets, pa.array(found.ravel(), pa.float64())),
        }
    )


def lists_of_both(
    users: DataFrame,
    shipped: Shipped,
    packed: Packed | None,
    stacker: Stacker | None,
    *,
    n: int,
    diverse: Diverse | None = None,
    rating: Stacker | None = None,
) -> DataFrame:
    """The n best items of each user by flm, and by the stack if there is one, each also as diversity chooses them.

    Args:
      users: as of `features`.
      packed: None where there is no stack.
      rating: the stack that is asked about the items of c.HELD.

    Returns:
      Columns and order as `baselines.lists.lists`, the further lists called by `diversity.diversified`, and is_held:
      the items of c.HELD are rows too, of any rank, flm's score being its probability there.
    """

    def rows(user: User, answer: Answer, worker: Any, pack: Pack | None) -> Iterator[pa.RecordBatch]:
        said, found = answer.said, None
        if said is not None and (stacker is not None or rating is not None):
            assert pack is not None
            found = _features(user, worker, answer, pack)
        values: dict[str, Any] = {FLM: None if said is None else said.score}
        if stacker is not None:
            values[HYBRID] = None if found is None else stacker.probability(found)
        for name, own in values.items():
            yield _named(name, scores.list_rows(user, worker, answer, None if own is None else answer.best(own, n)))
            if diverse is not None:
                pick = of_worker(diverse.config, worker)
                top = None if own is None else answer.best(own, diverse.n, pick)
                yield _named(diversified(name), scores.list_rows(user, worker, answer, top))
        if said is None or answer.held is None:
            return
        rated = {FLM: said.probability[answer.held]}
        if rating is not None and found is not None:
            rated[HYBRID] = rating.probability(found[answer.held])
        places = answer.held if answer.asked is None else answer.asked[answer.held]
        for name, own in rated.items():
            top = scores.Best(places, own, rated[FLM])
            yield _named(name, scores.list_rows(user, worker, answer, top), is_held=True)

    return _mapped(users, shipped, packed, rows, f"{lists.OUTPUT}, {IS_HELD} boolean")


def _named(model: str, found: pa.RecordBatch, *, is_held: bool = False) -> pa.RecordBatch:
    named = found.add_column(0, MODEL, pa.array([model] * found.num_rows, pa.string()))
    return named.append_column(IS_HELD, pa.array([is_held] * found.num_rows, pa.bool_()))


def _mapped(users: DataFrame, shipped: Shipped, packed: Packed | None, rows: _Rows, output: str) -> DataFrame:
    # Not `shipped` itself: its resource profile cannot be pickled.
    profile, bundle, usage = scores.profile_columns(users), shipped.bundle, shipped.usage

    def map_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        with usage.task() as meter:
            worker, pack = bundle.worker(), None if packed is None else packed.open()
            if pack is not None and not worker.catalogue.ids.equals(pack.ids):
                raise ConflictError("items: the baselines and the checkpoint were sent with other ones; run again")
            for batch in batches:
                with meter.busy():
                    asked = list(users_of(batch, worker.catalogue, profile))
                    answers = zip(asked, scores.answers_of(asked, worker, meter), strict=True)
                    found = [part for user, answer in answers for part in rows(user, answer, worker, pack)]
                yield from pa.Table.from_batches(found).combine_chunks().to_batches() if found else ()

    more = [c.HELD] if c.HELD in users.columns else []
    planned = users.select(c.USER_ID, *profile, c.HISTORY, c.EXCLUDED, c.CANDIDATES, *more)
    return planned.mapInArrow(map_batches, output, profile=shipped.profile)


def _places(worker: Any, answer: Answer) -> Any:
    """Places in the catalogue of the items that the answer's values belong to."""
    return worker.catalogue.listed if answer.asked is None else worker.catalogue.listed[answer.asked]


def _heads(found: Floats, n: int, allowed: Any) -> Any:
    """Places of the n best of each column (R, M) that are allowed (bool (R,)), ascending; nan is below all else.

    A column that says the same of all has no best ones: they would be the first by id.
    """
    values = np.where(np.isnan(found), -np.inf, found)
    own = values if allowed is None else values[allowed]
    tells = own.min(axis=0, initial=np.inf) < own.max(axis=0, initial=-np.inf)
    columns = values.T[tells] if tells.any() else values.T[:1]
    return np.unique(np.concatenate([ranking.best(column, n, allowed=allowed) for column in columns]))


def _features(row: User, worker: Any, answer: Answer, pack: Pack) -> Floats:
    places, user = _places(worker, answer), pack.user(row)
    columns = [answer.said.rating, *([] if answer.said.listing is None else [answer.said.listing])]
    for baseline in pack.fitted.values():
        said = baseline.scores(user)
        columns.append(np.full(len(places), np.nan) if said is None else said[places])
    return np.column_stack(columns)
