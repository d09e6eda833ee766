"""A tiny world on disk: files as people have them, a tiny pretrained model, and a config that joins them."""

from __future__ import annotations

import random
from pathlib import Path

import yaml

from tests.tiny import save_tiny

USERS = [f"u{number:02d}" for number in range(12)] + ["007", "用户 甲"]
MEANS = ["popularity", "item_mean", "user_mean", "user_item_mean"]  # the cheapest baselines
ITEMS = [f"i{number:02d}" for number in range(15)] + ["0042", 'it\'em "q"']
GENRES = ["drama", "comedy", "sci-fi"]
NEW_USER = "newcomer"  # has a profile and no interactions


def write_world(folder: Path, *, seed: int = 1, **sections: dict[str, object]) -> Path:
    """Writes ratings, items, users, a pretrained folder and config.yaml; returns the config's path.

    Users with an even place like items with an even place; ratings come in a random order of items.
    """
    draw = random.Random(seed)
    ratings = ["user_id,item_id,rating,timestamp"]
    for place, user in enumerate(USERS):
        seen = draw.sample(range(len(ITEMS)), 10)
        for moment, item in enumerate(seen):
            rating = 5 if item % 2 == place % 2 else 2
            ratings.append(f"{user},{_quoted(ITEMS[item])},{rating},{1_000_000 + 60 * moment}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ratings.csv").write_text("\n".join(ratings) + "\n", encoding="utf-8")
    items = [f"{_quoted(item)},title {place % 2},{GENRES[place % 3]}" for place, item in enumerate(ITEMS)]
    (folder / "items.csv").write_text("\n".join(["item_id,title,genre", *items]) + "\n", encoding="utf-8")
    users = [f"{user},{20 + place}" for place, user in enumerate([*USERS, NEW_USER])]
    (folder / "users.csv").write_text("\n".join(["user_id,age", *users]) + "\n", encoding="utf-8")
    save_tiny(folder / "model")
    return write_config(folder, **sections)


def write_config(folder: Path, **sections: dict[str, object]) -> Path:
    """The world's config; `sections` replace keys of its sections."""
    values: dict[str, dict[str, object]] = {
        "tables": {"root": str(folder / "tables"), "database": "world", "metastore": None},
        "prepare": {
            "interactions": {"path": str(folder / "ratings.csv"), "format": "csv"},
            "items": {"path": str(folder / "items.csv"), "format": "csv"},
            "users": {"path": str(folder / "users.csv"), "format": "csv"},
            "rating_range": [1, 5],
            "liked_at_least": 4,
            "targets_per_example": 4,
        },
        "prompts": {"template": "en", "user_tokens": 64, "item_tokens": 40, "history_length": 6},
        "model": {"path": str(folder / "model"), "join": "layer", "collaborative": {"dimension": 0}},
        "finetune": {"epochs": 2, "examples_per_step": 8, "negatives": 4, "precision": "fp32"},
        "score": {"n": 3, "partitions": 2},
        "evaluate": {"k": [1, 3], "bootstrap": 20, "baselines": MEANS, "hybrid": False},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    config = folder / "config.yaml"
    text = yaml.safe_dump({**values, "checkpoint": str(folder / "checkpoint")}, allow_unicode=True)
    config.write_text(text, encoding="utf-8")
    return config


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
