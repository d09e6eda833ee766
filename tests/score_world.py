"""A small world for jobs/score.py: prepared tables with what must be refused, and what readers see after a run."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from deltalake import DeltaTable

from jobs import score
from tests.prepared import prepared_rows
from tests.world import USERS, write_config

SCORE = {"n": 3, "partitions": 2, "min_coverage": 0.9, "max_reject_share": 0.1}
COLD, VERBOSE = "new o'user", "verbose"
LISTED_USERS = {*USERS, COLD}
_NUMBERS = itertools.count(1)

Row = dict[str, Any]


def world_rows() -> dict[str, list[Row]]:
    """The prepared tables with a user without interactions, one that no prompt has room for, and such an item."""
    rows = prepared_rows()
    rows["users"] += [{"user_id": COLD, "group": "x"}, {"user_id": VERBOSE, "group": "x" * 100}]
    rows["items"] += [{"item_id": "too long", "title": "y" * 60, "genre": "drama"}]
    return rows


def copied(folder: Path, target: Path, *, database: str | None = None) -> Path:
    """A world of its own, with a database that no other has."""
    shutil.copytree(folder, target)
    own = {"root": str(target / "tables"), "database": database or f"score{next(_NUMBERS)}"}
    write_config(target, tables={**own, "metastore": str(target / "metastore")}, score=SCORE)
    return target


def run(folder: Path, *argv: str) -> int:
    return score.main(["--config", str(folder / "config.yaml"), *argv])


def rows(folder: Path, name: str) -> list[Row]:
    """The table as a reader without Spark sees it, in a fixed order."""
    found = DeltaTable(str(folder / "tables" / name)).to_pyarrow_table().to_pylist()
    return sorted(found, key=lambda row: json.dumps(row, sort_keys=True, default=str))


def rows_of_first(folder: Path, name: str) -> list[Row]:
    return [row for row in rows(folder, name) if row["run_id"] == "first"]


def lists(folder: Path) -> dict[str, list[tuple[str, float]]]:
    """(item, score) of each user in the order of rank; rank, order and columns are checked."""
    by_user: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows(folder, "recommendations"), key=lambda row: row["rank"]):
        by_user[row["user_id"]].append(row)
    for own in by_user.values():
        assert [row["rank"] for row in own] == list(range(1, len(own) + 1))
        assert own == sorted(own, key=lambda row: (-row["score"], row["item_id"]))
    return {user: [(row["item_id"], row["score"]) for row in own] for user, own in by_user.items()}


def version(folder: Path, name: str) -> int:
    return DeltaTable(str(folder / "tables" / name)).version()


def versions(folder: Path) -> dict[str, int]:
    return {table.name: version(folder, table.name) for table in (folder / "tables").iterdir()}


def runs(folder: Path) -> dict[str, Row]:
    return {row["run_id"]: row for row in rows(folder, "runs")}
