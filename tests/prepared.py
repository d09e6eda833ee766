"""The tables that jobs/prepare.py would write of a tiny separable world, written without Spark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import write_deltalake
from pyspark.sql import types as T
from pyspark.sql.pandas.types import to_arrow_type

from flmrec_spark import columns as c
from flmrec_spark.config import Config, load_config
from flmrec_spark.tables import schemas
from tests.world import GENRES, ITEMS, USERS, write_config

TARGETS_PER_EXAMPLE = 4
N_RATED, N_TRAIN = 12, 8  # of each user: 8 train, 3 valid, 1 test


def rated(user: int) -> list[int]:
    """Places of the items that a user rates, oldest first; liked are those of the user's parity."""
    return [(7 * step + 3 * user) % len(ITEMS) for step in range(N_RATED)]


def prepared_rows() -> dict[str, list[dict[str, Any]]]:
    """Rows of each table, by its name."""
    interactions, examples = [], []
    for place, user in enumerate(USERS):
        entries = [
            {c.ITEM_ID: ITEMS[item], c.IS_LIKED: item % 2 == place % 2, c.VALUE: 5.0 if item % 2 == place % 2 else 2.0}
            for item in rated(place)
        ]
        for at, entry in enumerate(entries):
            split = c.TRAIN if at < N_TRAIN else c.VALID if at < N_RATED - 1 else c.TEST
            own = {c.USER_ID: user, c.MOMENT: at + 1, c.TIMESTAMP: None, c.RATING: entry[c.VALUE], c.EVENT: None}
            interactions.append({**own, **entry, c.SPLIT: split})
        for start in range(0, N_TRAIN, TARGETS_PER_EXAMPLE):
            examples.append(_example(user, entries, c.TRAIN, start, start + TARGETS_PER_EXAMPLE))
        examples.append(_example(user, entries, c.VALID, N_TRAIN, N_RATED - 1))
        examples.append(_example(user, entries, c.TEST, N_RATED - 1, N_RATED))
    items = [
        {c.ITEM_ID: item, c.TITLE: "ab"[place % 2] * 2, "genre": GENRES[place % 3]} for place, item in enumerate(ITEMS)
    ]
    users = [{c.USER_ID: user, "group": "xy"[place % 2]} for place, user in enumerate(USERS)]
    return {"interactions": interactions, "items": items, "users": users, "examples": examples}


def write_prepared(root: Path, rows: dict[str, list[dict[str, Any]]] | None = None) -> Path:
    """Writes the tables as <root>/<name>."""
    described = {
        "interactions": schemas.INTERACTIONS,
        "items": schemas.items({"genre": T.StringType()}),
        "users": schemas.users({"group": T.StringType()}),
        "examples": schemas.EXAMPLES,
    }
    for name, content in (rows or prepared_rows()).items():
        fields = [(column.name, _arrow(column.type)) for column in described[name].columns]
        write_deltalake(str(root / name), pa.Table.from_pylist(content, pa.schema(fields)), mode="overwrite")
    return root


def tiny_config(folder: Path, *overrides: str, **sections: dict[str, object]) -> Config:
    """The config of a folder that holds `model` and `tables`; trains a tiny model in a second."""
    finetune = {
        "epochs": 2,
        "examples_per_step": 8,
        "negatives": 4,
        "learning_rate": 2e-3,
        "head_learning_rate": 1e-2,
        "precision": "fp32",
        **sections.pop("finetune", {}),
    }
    return load_config(write_config(folder, finetune=finetune, **sections), overrides)


def _arrow(kind: T.DataType) -> pa.DataType:
    return to_arrow_type(kind, timezone="UTC") if isinstance(kind, T.TimestampType) else to_arrow_type(kind)


def _example(user: str, entries: list[dict[str, Any]], split: str, start: int, stop: int) -> dict[str, Any]:
    history = entries[: min(start, N_RATED - 1)][::-1]
    return {
        c.USER_ID: user,
        c.MOMENT: start + 1,
        c.SPLIT: split,
        c.HISTORY: history,
        c.TARGETS: entries[start:stop],
    }
