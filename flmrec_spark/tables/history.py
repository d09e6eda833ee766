"""What Delta's log tells of a table: which commits changed its rows, and what made them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from delta.tables import DeltaTable

_SAME_ROWS = (
    *("OPTIMIZE", "REORG", "CLUSTER BY", "VACUUM START", "VACUUM END", "COMPUTE STATS", "ROW TRACKING BACKFILL"),
    *("SET TBLPROPERTIES", "UNSET TBLPROPERTIES", "CHANGE COLUMN", "CHANGE COLUMNS", "DOMAIN METADATA CLEANUP"),
    *("ADD CONSTRAINT", "DROP CONSTRAINT", "UPGRADE PROTOCOL", "ADD FEATURE", "DROP FEATURE"),
)


@dataclass(frozen=True)
class State:
    """A table as it is now."""

    version: int
    of_rows: int  # the version since which the rows are the same: OPTIMIZE and the like change none
    made: dict[str, Any]  # what made the rows: the metadata of the commit, {} if foreign


def state(table: DeltaTable) -> State:
    """Of the version that is read now; most often by a look at the last commit alone."""
    last = table.history(1).collect()[0]
    version = int(last["version"])
    if last["operation"] not in _SAME_ROWS:
        return State(version, version, _parsed(last["userMetadata"]))
    return State(version, *next(iter(changes(table)), (version, {})))


def changes(table: DeltaTable) -> list[tuple[int, dict[str, Any]]]:
    """Version and metadata of each commit that changed rows, newest first."""
    history = table.history().select("version", "operation", "userMetadata").collect()
    changed = (row for row in history if row["operation"] not in _SAME_ROWS)
    return [(int(row["version"]), _parsed(row["userMetadata"])) for row in changed]


def _parsed(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
