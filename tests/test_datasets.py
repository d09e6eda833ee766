"""Data of other shapes from its files to its evaluation: nothing but a config and a column mapping changes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

from flmrec_spark import columns as c
from jobs import evaluate, prepare
from scripts import finetune
from tests.report.pages import parsed
from tests.tiny import save_tiny
from tests.world import ITEMS, write_config

Row = dict[str, object]
COLUMNS = {"user_id": "member", "item_id": "sku"}
ALONE: dict[str, object] = {"baselines": [], "against": None}  # where nothing is asked of a baseline
FINETUNE = {
    "epochs": 1,
    "max_steps": 2,
    "examples_per_step": 8,
    "negatives": 0,
    "ranking_weight": 0.0,
    "precision": "fp32",
}


def evaluated(
    folder: Path,
    lines: list[str],
    *,
    database: str,
    prepare_keys: dict[str, object],
    more: dict[str, dict[str, object]] | None = None,
    with_page: bool = False,
) -> Path:
    """Runs prepare, fine-tune and evaluate on a log without item and user files; returns the folder of the tables."""
    folder.mkdir(exist_ok=True)
    (folder / "log.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    save_tiny(folder / "model")
    source = {"path": str(folder / "log.csv"), "format": "csv", "columns": COLUMNS}
    keys = {"interactions": source, "items": None, "users": None, "rating_range": None, **prepare_keys}
    few = {"k": [3], "bootstrap": 5, "baselines": ["popularity", "item_mean"], "hybrid": False}
    sections: dict[str, dict[str, object]] = {
        "tables": {"database": database},
        "prepare": keys,
        "finetune": FINETUNE,
        "evaluate": few,
    }
    for name, section in (more or {}).items():
        sections[name] = {**sections.get(name, {}), **section}
    config = write_config(folder, **sections)
    for main in (prepare.main, finetune.main):
        assert main(["--config", str(config)]) == 0
    page = ["--report", str(folder / "report.html")] if with_page else []
    assert evaluate.main(["--config", str(config), *page]) == 0
    return folder / "tables"


def rows(tables: Path, name: str) -> list[Row]:
    found: list[Row] = DeltaTable(str(tables / name)).to_pyarrow_table().to_pylist()
    return found


def measured(tables: Path) -> dict[tuple[object, ...], Row]:
    return {(row["model"], row["metric"], row["k"], row["segment"]): row for row in rows(tables, "evaluation")}


def counts(tables: Path) -> dict[str, int]:
    return dict(next(row for row in rows(tables, "runs") if row["job"] == "evaluate")["counts"])  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def own_split(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten users with rows in train, valid and test; three who have test rows alone, one of a word of its own."""
    draw = random.Random(1)
    lines = ["member,sku,rating,split"]
    for place in range(10):
        seen = draw.sample(range(10), 8)
        for number, item in enumerate(seen):
            split = "train" if number < 5 else "dev" if number < 7 else "test"
            lines.append(f"m{place},i{item:02},{5 if item % 2 == place % 2 else 1},{split}")
    lines += [f"new{place},i{item:02},{item % 5 + 1},TEST" for place in range(2) for item in range(place, 12, 3)]
    lines += ["用户 甲,i04,5,test", "用户 甲,i05,1,test"]
    return evaluated(
        tmp_path_factory.mktemp("own_split"),
        lines,
        database="own_split",
        prepare_keys={"split": {"by": "column"}, "liked_at_least": 4},
        with_page=True,
    )


def test_rows_keep_the_split_that_they_came_with(own_split: Path) -> None:
    found = rows(own_split, "interactions")
    by_split = {split: sum(row[c.SPLIT] == split for row in found) for split in c.SPLITS}
    assert by_split == {"train": 50, "valid": 20, "test": 10 + 8 + 2}
    assert {row[c.SPLIT] for row in found if str(row[c.USER_ID]).startswith(("new", "用户"))} == {"test"}


def test_test_users_who_are_not_in_train_are_measured_as_cold_ones(own_split: Path) -> None:
    found, counted = measured(own_split), counts(own_split)
    assert (counted["users"], counted["held_out_rows"]) == (13, 20)
    assert (counted["unscored_rows"], counted["users_without_list"]) == (0, 0)
    for model in ("flm", "popularity", "item_mean"):
        assert found[model, "auc", 0, "cold users"]["n_users"] == 3
        assert found[model, "auc", 0, "warm users"]["n_users"] == 10
        assert 0 <= found[model, "auc", 0, "cold users"]["value"] <= 1  # type: ignore[operator]
    cold_items = {row[c.ITEM_ID] for row in rows(own_split, "interactions") if row[c.SPLIT] == "test"} - {
        row[c.ITEM_ID] for row in rows(own_split, "interactions") if row[c.SPLIT] != "test"
    }
    assert cold_items == {"i10"}  # of new1 alone
    assert found["flm", "accuracy", 0, "cold users, cold items"]["value"] is not None
    assert found["flm", "accuracy", 0, "warm users, cold items"]["value"] is None


@pytest.fixture(scope="module")
def shop(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of views, carts and purchases in milliseconds, without a rating; users come back to the same item."""
    draw = random.Random(2)
    lines = ["member,sku,what,when"]
    events = ["view", "view", "cart", "buy"]
    for place in range(14):
        for number in range(12):
            item = ITEMS[draw.randrange(len(ITEMS))].replace('"', "'")
            lines.append(f"c{place},{item},{draw.choice(events)},{1_700_000_000_000 + 1000 * (12 * number + place)}")
    keys: dict[str, object] = {
        "event_values": {"view": 1, "cart": 2, "buy": 3},
        "liked_at_least": 2,
        "split": {"by": "global_time", "valid_share": 0.2, "test_share": 0.2},
    }
    folder = tmp_path_factory.mktemp("shop")
    columns = {**COLUMNS, "event": "what", "timestamp": "when"}
    source = {"path": str(folder / "log.csv"), "format": "csv", "columns": columns}
    keys["interactions"] = source
    return evaluated(folder, lines, database="shop", prepare_keys=keys, more={"evaluate": ALONE}, with_page=True)


def test_a_log_without_ratings_is_measured_by_what_its_events_are_worth(shop: Path) -> None:
    worth = {"view": 1.0, "cart": 2.0, "buy": 3.0}
    interactions = rows(shop, "interactions")
    assert all(row[c.RATING] is None and row[c.VALUE] == worth[str(row[c.EVENT])] for row in interactions)
    assert all(row[c.IS_LIKED] is (row[c.EVENT] != "view") for row in interactions)
    found = measured(shop)
    for metric in ("auc", "log_loss"):
        assert found["flm", metric, 0, "all"]["value"] is not None
    held_out = [row for row in interactions if row[c.SPLIT] == "test"]
    assert counts(shop)["held_out_rows"] == len(held_out)
    seen = {(row[c.USER_ID], row[c.ITEM_ID]) for row in interactions if row[c.SPLIT] != "test"}
    new = {(row[c.USER_ID], row[c.ITEM_ID]) for row in held_out if row[c.IS_LIKED]} - seen
    assert found["flm", "recall", 3, "all"]["n_users"] == len({user for user, _ in new})


@pytest.fixture(scope="module")
def new_items(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ratings of 24 items, of which some are held out with all that anybody did with them."""
    draw = random.Random(3)
    lines = ["member,sku,rating,timestamp"]
    for place in range(12):
        lines += [f"m{place},item {k},{draw.randint(1, 5)},{60 * n}" for n, k in enumerate(draw.sample(range(24), 16))]
    split = {"by": "cold_items", "valid_share": 0.2, "test_share": 0.3, "seed": 4}
    folder = tmp_path_factory.mktemp("new_items")
    return evaluated(folder, lines, database="new_items", prepare_keys={"split": split, "liked_at_least": 4})


def test_held_out_items_are_known_by_their_text_alone(new_items: Path) -> None:
    interactions, found = rows(new_items, "interactions"), measured(new_items)
    splits = {split: {row[c.ITEM_ID] for row in interactions if row[c.SPLIT] == split} for split in c.SPLITS}
    assert all(splits.values())
    assert not splits["test"] & (splits["train"] | splits["valid"])
    biased = pq.read_table(new_items.parent / "checkpoint" / "biases.parquet").to_pylist()
    assert {row["bias"] for row in biased if row["kind"] == "item" and row["id"] in splits["test"]} == {0.0}
    of_train = pq.read_table(new_items.parent / "checkpoint" / "biases.train.parquet").to_pylist()
    in_valid = [(row["id"], row["bias"]) for row in of_train if row["kind"] == "item" and row["id"] in splits["valid"]]
    assert in_valid == [(item, 0.0) for item in sorted(splits["valid"])]
    assert any(row["bias"] for row in biased if row["kind"] == "item" and row["id"] in splits["valid"])
    for metric, k in (("auc", 0), ("recall", 3)):
        assert found["flm", metric, k, "cold items"]["value"] == found["flm", metric, k, "all"]["value"] is not None
        assert found["flm", metric, k, "warm items"]["value"] is None
    assert found["item_mean", "auc", 0, "cold items"]["value"] == 0.5  # it knows nothing of any of them


FACTORS = {"epochs": 3, "patience": 9, "rows_per_step": 8}


@pytest.fixture(scope="module")
def new_users(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ratings of 40 users: a fifth is held out with all that they did, another fifth stops and calibrates."""
    draw = random.Random(5)
    lines = ["member,sku,rating,timestamp"]
    for place in range(40):
        likes = draw.sample(range(place % 2, 24, 2), 6)  # of their own half
        others = draw.sample(range(1 - place % 2, 24, 2), 5)
        seen = [(item, draw.randint(4, 5)) for item in likes] + [(item, draw.randint(1, 3)) for item in others]
        draw.shuffle(seen)
        lines += [f"m{place},item {item},{rating},{60 * n}" for n, (item, rating) in enumerate(seen)]
    split = {"by": "cold_users", "valid_share": 0.2, "test_share": 0.2, "seed": 4}
    return evaluated(
        tmp_path_factory.mktemp("new_users"),
        lines,
        database="new_users",
        prepare_keys={"split": split, "liked_at_least": 4},
        more={
            "finetune": {"factors": FACTORS, "ranking_weight": 0.2, "negatives": 4},
            "model": {"collaborative": {"dimension": 4}},
            "evaluate": ALONE,
        },
    )


def test_held_out_users_stop_the_factors_and_say_nothing_of_what_tastes_are_worth(
    new_users: Path,
) -> None:
    interactions, found = rows(new_users, "interactions"), measured(new_users)
    splits = {split: {row[c.USER_ID] for row in interactions if row[c.SPLIT] == split} for split in c.SPLITS}
    assert all(splits.values())
    assert sum(map(len, splits.values())) == 40
    folder = new_users.parent / "checkpoint"
    told = json.loads((folder / "metrics.json").read_text())
    assert set(told["factors"]["listing"]) == {"ndcg", "epoch"} and set(told["factors"]["rating"]) == {"uauc", "epoch"}
    blends = json.loads((folder / "calibration.json").read_text())
    assert blends["rating"]["factors"] == blends["rating"]["slope"] > 0
    assert blends["listing"]["factors"] == blends["listing"]["head"]
    assert blends["new_users"] is not None and blends["new_users"] != blends
    assert found["flm", "auc", 0, "cold users"]["value"] == found["flm", "auc", 0, "all"]["value"] is not None
    assert found["flm", "auc", 0, "warm users"]["value"] is None


@pytest.mark.parametrize("name", ["own_split", "shop"])
def test_the_report_of_other_data_is_whole(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name).parent
    read = parsed((folder / "report.html").read_text(encoding="utf-8"))
    assert read.all("section", class_="card")
    assert len(read.all("section", class_="person")) == 3
    assert {"Validation AUC", "Predicted and observed"} <= {one.text() for one in read.all("figcaption")}
