"""Learned offsets on the logit by id, and their file in a checkpoint: kind (user, item), id, bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from flmrec_spark.errors import CheckpointError
from flmrec_spark.lm import manifest

_SCHEMA = pa.schema([("kind", pa.string()), ("id", pa.string()), ("bias", pa.float32())])
_SHRINK = 5.0  # interactions that an average user or item counts for


def shrunk_log_odds(counts: npt.ArrayLike, likes: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Where offsets start: the shrunk log-odds of each id (n,) of being liked, less those of all rows; 0 without rows.

    Each side is counted by itself, in float64, so that they are finite where all of many rows are liked.
    """
    rows, liked = np.asarray(counts, dtype=np.float64), np.asarray(likes, dtype=np.float64)
    sides = np.stack([liked, rows - liked])
    shares = (sides.sum(1, keepdims=True) + 0.5) / (sides.sum() + 1.0)
    logs = np.log(sides + _SHRINK * shares) - np.log(shares)
    return np.where(rows > 0, logs[0] - logs[1], 0.0).astype(np.float32)


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
