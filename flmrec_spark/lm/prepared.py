"""The tables that jobs/prepare.py wrote, read without Spark at one recorded version each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from flmrec_spark import columns as c
from flmrec_spark.errors import ConfigError, InputError
from flmrec_spark.files import local, table_place

TABLES = ("interactions", "items", "users", "examples")


@dataclass(frozen=True)
class Prepared:
    """The tables that jobs/prepare.py wrote, and the version of each."""

    tables: Mapping[str, pa.Table]
    versions: Mapping[str, int]
    table_ids: Mapping[str, str]  # of a table made anew, whose versions count from 0 again

    def fields(self, name: str) -> list[str]:
        """Attribute names of items or users."""
        keys = (c.ITEM_ID, c.TITLE, c.USER_ID)
        return [column for column in self.tables[name].column_names if column not in keys]


def read_tables(root: str | None) -> Prepared:
    """Reads the prepared tables at their latest versions.

    Raises:
      ConfigError: there is no root to read from.
      InputError: a table is missing, unreadable or empty, or they are not of one run.
    """
    if root is None:
        raise ConfigError("tables.root: got null, expected a path: fine-tuning reads the tables without a catalog")
    tables, versions, table_ids = {}, {}, {}
    for name in TABLES:
        place = local(table_place(root, name))
        try:
            table = DeltaTable(place)
            # A thread of the reader that still runs when a process ends soon after would abort it.
            tables[name] = table.to_pyarrow_dataset().to_table(use_threads=False)
            versions[name] = table.version()
            table_ids[name] = str(table.metadata().id)
        except TableNotFoundError:
            raise InputError(f"table {name}: not found at {place}; run jobs/prepare.py first") from None
        except (DeltaError, OSError) as fault:
            raise InputError(f"table {name}: not readable at {place}: {' '.join(str(fault).split())[:300]}") from fault
        if tables[name].num_rows == 0:
            raise InputError(f"table {name}: got no rows at {place}, expected some")
    prepared = Prepared(tables, versions, table_ids)
    _expect_whole(prepared)
    return prepared


def _expect_whole(prepared: Prepared) -> None:
    """Raises InputError when the tables are not of one run: a killed prepare leaves some older than others."""
    tables = prepared.tables
    examples, interactions = tables["examples"], tables["interactions"]
    entries = [*examples[c.HISTORY].chunks, *examples[c.TARGETS].chunks]
    shown = [entry.flatten().field(c.ITEM_ID) for entry in entries]
    for name, key, used in (
        ("items", c.ITEM_ID, [*interactions[c.ITEM_ID].chunks, *shown]),
        ("users", c.USER_ID, [*interactions[c.USER_ID].chunks, *examples[c.USER_ID].chunks]),
    ):
        known = tables[name][key].combine_chunks()
        if not all(pc.all(pc.is_in(part, value_set=known), min_count=0).as_py() for part in used):
            raise InputError(f"table {name}: lacks ids that interactions or examples name; run jobs/prepare.py again")


def of_splits(prepared: Prepared, splits: Sequence[str]) -> pa.Table:
    """Rows of the table interactions."""
    table = prepared.tables["interactions"]
    return table.filter(pc.is_in(table[c.SPLIT], value_set=pa.array(splits)))


def drawn_users(prepared: Prepared, split: str, *, n: int, seed: Sequence[int]) -> list[str]:
    """At most `n` of the users who have examples of the split, drawn by `seed`."""
    table = prepared.tables["examples"]
    users = sorted(pc.unique(table[c.USER_ID].filter(pc.equal(table[c.SPLIT], split))).to_pylist())
    return [users[place] for place in np.random.default_rng(seed).permutation(len(users))[:n]]


def expect_histories(prepared: Prepared, length: int) -> None:
    """Raises ConfigError when a prompt could show up to `length` interactions, and prepare has kept fewer."""
    table = prepared.tables["examples"]
    kept = pc.max(pc.list_value_length(table[c.HISTORY])).as_py()
    if kept >= length:
        return
    for split, splits in ((c.TRAIN, [c.TRAIN]), (c.VALID, [c.TRAIN]), (c.TEST, [c.TRAIN, c.VALID])):
        asked = table.filter(pc.equal(table[c.SPLIT], split)).group_by(c.USER_ID, use_threads=False)
        last = asked.aggregate([(c.MOMENT, "max")])
        shown = of_splits(prepared, splits).select([c.USER_ID, c.MOMENT])
        pairs = shown.join(last, c.USER_ID, join_type="inner", use_threads=False)
        before = pairs.filter(pc.less(pairs[c.MOMENT], pairs[f"{c.MOMENT}_max"]))
        counted = before.group_by(c.USER_ID, use_threads=False).aggregate([(c.MOMENT, "count")])
        if pc.any(pc.greater(counted[f"{c.MOMENT}_count"], kept)).as_py():
            raise ConfigError(
                f"prompts.history_length: got {length}, expected at most {kept}, which the examples were prepared "
                "with; run jobs/prepare.py again"
            )
