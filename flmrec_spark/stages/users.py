"""Rows of `user_prompts` as a task reads them: one user each, items as places in a catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from flmrec_spark import columns as c


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
    held: Any = None  # int (R,) asked about beside the list, or None for none

    def interactions(self, fields: list[dict[str, Any]], n: int) -> list[Any]:
        """`segments.Interaction` of the n newest, less those that have left the catalogue."""
        from flmrec_spark.lm.segments import Interaction

        newest = zip(self.history[:n].tolist(), self.is_liked, self.values, strict=False)
        return [Interaction(fields[place], is_liked, value) for place, is_liked, value in newest if place >= 0]


def users_of(batch: pa.RecordBatch, catalogue: Any, profile: list[str]) -> Iterator[User]:
    """The users of a batch of `user_prompts`; item ids become the catalogue's `places` without an object per id."""
    excluded, candidates = (_places(batch.column(name), catalogue) for name in (c.EXCLUDED, c.CANDIDATES))
    held = _places(batch.column(c.HELD), catalogue) if c.HELD in batch.schema.names else [None] * batch.num_rows
    entries = batch.column(c.HISTORY).flatten()
    places = catalogue.places(entries.field(c.ITEM_ID))
    liked, values = entries.field(c.IS_LIKED).to_pylist(), entries.field(c.VALUE).to_pylist()
    sizes = batch.column(c.HISTORY).value_lengths().fill_null(0).to_pylist()
    end = 0
    rows = batch.select([c.USER_ID, *profile]).to_pylist()
    for row, size, own, asked, beside in zip(rows, sizes, excluded, candidates, held, strict=True):
        part, end = slice(end, end + size), end + size
        known = {name: row[name] for name in profile}
        yield User(row[c.USER_ID], known, places[part], liked[part], values[part], own, asked, beside)


def _places(lists: pa.ListArray, catalogue: Any) -> list[Any]:
    flat = catalogue.places(lists.flatten())
    sizes = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    parts = np.split(flat, np.cumsum(sizes)[:-1]) if len(sizes) else []
    return [
        part[part >= 0] if is_valid else None
        for part, is_valid in zip(parts, lists.is_valid().to_pylist(), strict=True)
    ]
