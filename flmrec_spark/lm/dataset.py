"""The prepared tables as training arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from flmrec_spark import columns as c
from flmrec_spark.lm.grades import Grades
from flmrec_spark.lm.prepared import Prepared, of_splits
from flmrec_spark.lm.segments import Interaction, Segmenter
from flmrec_spark.lm.sequences import Sequences
from flmrec_spark.lm.token_block import TokenBlock

Index = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Catalog:
    """Items in the order of their ids, tokenised once."""

    item_ids: list[str]
    fields: list[dict[str, Any]]
    tokens: TokenBlock  # N rows; an item that was refused has one token that says nothing
    is_known: npt.NDArray[np.bool_]  # (N,), false for a refused item

    def ids(self) -> pa.Array:
        return pa.array(self.item_ids, pa.string())

    def places(self, item_ids: pa.Array) -> Index:
        """Place of each id, -1 for an unknown one: int64 (len(item_ids),)."""
        found = pc.index_in(item_ids, value_set=self.ids())
        return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), dtype=np.int64)


@dataclass(frozen=True)
class Source:
    """What a prefix was rendered from."""

    profile: dict[str, Any]
    history: list[Interaction]  # newest first


@dataclass(frozen=True)
class Examples:
    """User prefixes and what they are asked about; targets in rows of at most `width`, -1 where there is none."""

    prefixes: list[list[int]]  # tokens
    users: Index  # (R,): place of the user
    targets: Index  # (R, width): place of the item, or -1
    labels: Floats  # (R, width): 1 liked, 0 not
    n_cut: int  # interactions that did not fit the token budget, all prefixes together
    n_refused: int  # examples whose text before the history did not fit it alone, and which are left out
    moments: Index  # (R,): the history lies strictly before it
    is_new: npt.NDArray[np.bool_]  # (R,): the user has no history
    sources: list[Source] = field(default_factory=list)  # of each row, when they are kept

    def __len__(self) -> int:
        return len(self.prefixes)


def catalog(items: pa.Table, segmenter: Segmenter) -> Catalog:
    """Tokenises the items, in the order of their ids."""
    rows = items.sort_by(c.ITEM_ID).to_pylist()
    segments = segmenter.items(rows)
    known = np.array([segment is not None for segment in segments], dtype=bool)
    tokens = segmenter.block([segment or segmenter.unknown_item for segment in segments])
    return Catalog([row[c.ITEM_ID] for row in rows], rows, tokens, known)


_ROWS_AT_ONCE = 1024  # as objects of Python, which take many times what Arrow holds


def examples(
    prepared: Prepared,
    split: str,
    items: Catalog,
    segmenter: Segmenter,
    *,
    width: int | None,
    user_ids: Sequence[str],
    only: Sequence[str] | None = None,
    keeps_sources: bool = False,
) -> Examples:
    """Renders and tokenises the examples of a split, or those of the users `only`.

    An example with more than `width` targets becomes several rows with the same prefix; None keeps it whole. A
    prompt that does not fit its budget even without history is left out, as scoring refuses it too.
    """
    table = prepared.tables["examples"].filter(pc.equal(prepared.tables["examples"][c.SPLIT], split))
    if only is not None:
        table = table.filter(pc.is_in(table[c.USER_ID], value_set=pa.array(only, pa.string())))
    table = table.sort_by([(c.USER_ID, "ascending"), (c.MOMENT, "ascending")])
    profiles = {row[c.USER_ID]: row for row in prepared.tables["users"].to_pylist()}
    place_of_user = {user: place for place, user in enumerate(user_ids)}
    place_of_item = {item: place for place, item in enumerate(items.item_ids)}
    prefixes, users, moments, is_new, sources, n_cut, n_refused = [], [], [], [], [], 0, 0
    rows: list[list[tuple[int, float]]] = []
    for row in (row for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE) for row in batch.to_pylist()):
        history = [_interaction(entry, items, place_of_item) for entry in row[c.HISTORY]]
        profile = {key: value for key, value in profiles[row[c.USER_ID]].items() if key != c.USER_ID}
        segment = segmenter.user(profile, history)
        if segment is None:
            n_refused += 1
            continue
        n_cut += segment.n_cut
        asked = [
            (place, float(entry[c.IS_LIKED]))
            for entry in row[c.TARGETS]
            if items.is_known[place := place_of_item[entry[c.ITEM_ID]]]
        ]
        size = width or max(len(asked), 1)
        for start in range(0, len(asked), size):
            prefixes.append(segment.ids)
            users.append(place_of_user[row[c.USER_ID]])
            moments.append(row[c.MOMENT])
            is_new.append(not history)
            sources += [Source(profile, history)] if keeps_sources else []
            rows.append(asked[start : start + size])
    targets = np.full((len(rows), width or max(map(len, rows), default=1)), -1, dtype=np.int64)
    labels = np.zeros(targets.shape, dtype=np.float32)
    for at, asked in enumerate(rows):
        targets[at, : len(asked)] = [place for place, _ in asked]
        labels[at, : len(asked)] = [label for _, label in asked]
    place_of_row, moment_of_row = (np.array(part, dtype=np.int64) for part in (users, moments))
    new_of_row = np.array(is_new, dtype=bool)
    return Examples(prefixes, place_of_row, targets, labels, n_cut, n_refused, moment_of_row, new_of_row, sources)


def profiles(prepared: Prepared, segmenter: Segmenter, user_ids: Sequence[str], *, are_read: bool) -> list[list[int]]:
    """What stands before the history of each of the users, in tokens; nothing where nobody reads it."""
    if not are_read:
        return [[] for _ in user_ids]
    fields = {row.pop(c.USER_ID): row for row in prepared.tables["users"].to_pylist()}
    return segmenter.profiles([fields[user] for user in user_ids])


def grades(prepared: Prepared, *, splits: Sequence[str]) -> Grades:
    """What the values of the splits' interactions say of how much each was liked."""
    table = of_splits(prepared, splits)
    return Grades.of(*(table[key].to_numpy(zero_copy_only=False) for key in (c.VALUE, c.IS_LIKED)))


def sequences(
    prepared: Prepared,
    items: Catalog,
    user_ids: Sequence[str],
    *,
    splits: Sequence[str],
    grades: Grades | None = None,
) -> Sequences:
    """The interactions of the splits by place of user and item; labels by `grades`, if given."""
    table = of_splits(prepared, splits)
    users = pc.index_in(table[c.USER_ID], value_set=pa.array(user_ids, pa.string())).to_numpy(zero_copy_only=False)
    liked = table[c.IS_LIKED].to_numpy(zero_copy_only=False)
    return Sequences.of(
        users.astype(np.int64),
        items.places(table[c.ITEM_ID].combine_chunks()),
        liked,
        table[c.MOMENT].to_numpy(),
        None if grades is None else grades.labels(table[c.VALUE].to_numpy(zero_copy_only=False), liked),
        n_users=len(user_ids),
        n_items=len(items.item_ids),
    )


def seen(prepared: Prepared, items: Catalog, user_ids: Sequence[str], *, splits: Sequence[str]) -> Index:
    """Sorted keys user place * N + item place of every interaction of the splits, N items."""
    table = of_splits(prepared, splits)
    users = pc.index_in(table[c.USER_ID], value_set=pa.array(user_ids, pa.string())).to_numpy(zero_copy_only=False)
    keys = users.astype(np.int64) * len(items.item_ids) + items.places(table[c.ITEM_ID].combine_chunks())
    return np.unique(keys)


def counts(prepared: Prepared, column: str, ids: Sequence[str], *, splits: Sequence[str]) -> tuple[Floats, Floats]:
    """(interactions, liked interactions) in the splits by user or item: float32 (len(ids),) each."""
    table = of_splits(prepared, splits)
    places = pc.index_in(table[column], value_set=pa.array(ids, pa.string())).to_numpy(zero_copy_only=False)
    liked = table[c.IS_LIKED].to_numpy(zero_copy_only=False).astype(np.float32)
    rows = np.bincount(places.astype(np.int64), minlength=len(ids)).astype(np.float32)
    return rows, np.bincount(places.astype(np.int64), weights=liked, minlength=len(ids)).astype(np.float32)


def _interaction(entry: Mapping[str, Any], items: Catalog, place_of_item: Mapping[str, int]) -> Interaction:
    return Interaction(items.fields[place_of_item[entry[c.ITEM_ID]]], entry[c.IS_LIKED], entry[c.VALUE])
