"""Learned offsets on the logit by id, and their file in a checkpoint: kind (user, item), id, bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from flmrec_spark.errors import CheckpointError
from flmrec_spark.lm import manifest

_SCHEMA = pa.schema([("kind", pa.string()), ("id", pa.string()), ("bias", pa.float32())])
_PENALTY = 1.0  # of a squared offset, halved: that of the logistic regression baseline
_ROUNDS, _TOLERANCE = 100, 1e-4
_LONGEST_STEP = 1.0  # within which a curvature changes by a factor of e at most, so that Newton's steps end

Floats = npt.NDArray[np.float32]


def fit_offsets(users: Any, items: Any, liked: Any, *, n_users: int, n_items: int) -> tuple[Floats, Floats]:
    """Where offsets start: of users (U,) and of items (N,), together those that make the rows (R,) most likely.

        log-odds of liked = level + user + item,      - sum of log-likelihoods + 1/2 sum of squared offsets -> least

    So a user who met nothing but what everybody likes is not taken for one who likes everything (the model of Rasch
    1960, penalised). Found by Newton's steps for all users, then all items, in turns. An id without rows has 0; where
    all rows are liked, half a row on each side keeps the level finite.
    """
    users, items = np.asarray(users, dtype=np.int64), np.asarray(items, dtype=np.int64)
    labels = np.asarray(liked, dtype=np.float64)
    level, user, item = 0.0, np.zeros(n_users), np.zeros(n_items)

    def residuals() -> tuple[Any, Any]:
        share = 1.0 / (1.0 + np.exp(-(level + user[users] + item[items])))
        return labels - share, share * (1.0 - share)

    def step(gradient: Any, curvature: Any) -> Any:
        return np.clip(gradient / curvature, -_LONGEST_STEP, _LONGEST_STEP)

    for _ in range(_ROUNDS):
        error, weight = residuals()
        middle = 1.0 / (1.0 + np.exp(-level))
        moved = [step(error.sum() + 0.5 - middle, weight.sum() + middle * (1.0 - middle))]
        level += float(moved[0])
        for places, offsets in ((users, user), (items, item)):
            error, weight = residuals()
            n = len(offsets)
            gradient = np.bincount(places, error, n) - _PENALTY * offsets
            moved.append(step(gradient, np.bincount(places, weight, n) + _PENALTY))
            offsets += moved[-1]
        if max(float(np.abs(one).max(initial=0.0)) for one in moved) < _TOLERANCE:
            break
    return user.astype(np.float32), item.astype(np.float32)


@dataclass(frozen=True)
class Biases:
    """An id that training did not meet has 0."""

    user: Mapping[str, float]
    item: Mapping[str, float]

    def save(self, file: Path) -> None:
        rows = [(kind, *pair) for kind in ("user", "item") for pair in sorted(getattr(self, kind).items())]
        columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[], [], []]
        pq.write_table(pa.table(columns, schema=_SCHEMA), file)


def load(file: Path) -> Biases:
    """Raises CheckpointError when the file is missing or damaged."""
    try:
        table = pq.read_table(file, schema=_SCHEMA)
    except (OSError, pa.ArrowException) as fault:
        raise CheckpointError(f"{file}: not readable: {manifest.one_line(fault)}") from fault
    found: dict[str, dict[str, float]] = {"user": {}, "item": {}}
    for kind, key, bias in zip(*(table[name].to_pylist() for name in _SCHEMA.names), strict=True):
        found[kind][key] = bias
    return Biases(found["user"], found["item"])
