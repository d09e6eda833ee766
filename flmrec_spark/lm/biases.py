"""Learned offsets on the logit by id, and their file in a checkpoint: kind (user, item), id, bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from flmrec_spark.errors import CheckpointError
from flmrec_spark.lm import manifest

_SCHEMA = pa.schema([("kind", pa.string()), ("id", pa.string()), ("bias", pa.float32())])


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
