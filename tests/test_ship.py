"""What is refused on the driver before any task, which items travel and which may be listed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyspark import StorageLevel
from pyspark.sql import DataFrame, SparkSession

from flmrec_spark.config import ScoreConfig
from flmrec_spark.errors import CheckpointError, ConfigError, InputError
from flmrec_spark.lm.segments import TOO_LONG_ITEM
from flmrec_spark.prompts import load_template, parse_template
from flmrec_spark.ship import filter_digest, listable, ship
from flmrec_spark.stages.scores import Shipped
from tests.scored import write_checkpoint

ITEMS = [
    ("b", "two", 1, True, None),
    ("a", "one", 0, False, "1"),
    ("0042", "y" * 60, 3, None, "x"),
    ("用 'q\"", "three", None, True, "2"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("ship") / "checkpoint")


@pytest.fixture(scope="module")
def items(spark: SparkSession) -> DataFrame:
    frame = spark.createDataFrame(ITEMS, "item_id string, title string, stock int, is_new boolean, year string")
    return frame.persist(StorageLevel.MEMORY_ONLY)


@pytest.fixture
def shipped(spark: SparkSession, folder: Path, items: DataFrame) -> Callable[..., Shipped]:
    def call(item_filter: str | None = None, *, items: DataFrame = items, checkpoint: Path = folder) -> Shipped:
        users = spark.createDataFrame([], "user_id string, age int")
        given: dict[str, Any] = {"items": items, "users": users, "score": ScoreConfig(), "item_filter": item_filter}
        return ship(spark, checkpoint=str(checkpoint), **given)

    return call


@pytest.mark.parametrize(
    ("item_filter", "n_items"),
    [
        (None, 3),
        ("is_new", 2),  # null is not true
        ("stock > 0", 1),  # 0042 is in stock and too long
        ("NOT (stock > 0)", 1),
        ("title LIKE 't%' AND item_id <> 'b'", 1),
        ("true", 3),
    ],
)
def test_items_for_which_the_filter_is_true_may_be_listed(
    shipped: Callable[..., Shipped], item_filter: str | None, n_items: int
) -> None:
    found = shipped(item_filter)
    assert found.n_items == n_items
    passes = item_filter in (None, "stock > 0", "true")  # what the filter keeps out is not refused for its length
    assert found.rejected == [("0042", TOO_LONG_ITEM)] * passes


@pytest.mark.parametrize(
    ("item_filter", "told"),
    [
        ("stock >", r"got 'stock >', expected a predicate over item_id, title, stock, is_new, year: .*PARSE_SYNTAX"),
        (
            "in_stock = true",
            r"got 'in_stock = true', expected a predicate over item_id, .*: .*UNRESOLVED_COLUMN.*in_stock",
        ),
        ("stock", r"got 'stock', which is int, expected a predicate"),
        ("title", r"got 'title', which is string, expected a predicate"),
        ("*", r"got '\*', which is string, string, int, boolean, string, expected a predicate"),
        ("count(*) > 1", r"got 'count\(\*\) > 1', expected a predicate over"),
        ("row_number() OVER (ORDER BY item_id) < 3", r"got 'row_number\(\) .*, expected a predicate over"),
        ("int(year) > 0", r"got 'int\(year\) > 0', expected a predicate over .*CAST_INVALID_INPUT"),
        ("1 / 0 > 1", r"got '1 / 0 > 1', expected a predicate over .*DIVIDE_BY_ZERO"),
        ("", r"got '', expected a predicate over"),
    ],
)
def test_a_filter_that_is_no_predicate_over_the_items_is_told(
    shipped: Callable[..., Shipped], item_filter: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=r"^score\.item_filter: " + told) as raised:
        shipped(item_filter)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("item_filter", ["false", "stock > 99", "item_id = '0042'", "null::boolean"])
def test_a_filter_that_leaves_no_item_is_told(shipped: Callable[..., Shipped], item_filter: str) -> None:
    with pytest.raises(InputError, match=r"items: got 4 of which none may be listed, .* pass score\.item_filter"):
        shipped(item_filter)


def test_an_empty_table_of_items_is_told(shipped: Callable[..., Shipped], items: DataFrame) -> None:
    with pytest.raises(InputError, match="items: got 0 of which none may be listed"):
        shipped(items=items.where("false"))


def test_a_filter_that_lets_other_items_through_has_another_digest(items: DataFrame) -> None:
    assert filter_digest(items, None) is None
    assert listable(items, None) is items
    assert filter_digest(items, "is_new") == filter_digest(items, "is_new = true") != filter_digest(items, "stock > 0")


def test_a_template_that_shows_a_column_the_tables_lack_is_told(
    shipped: Callable[..., Shipped], tmp_path: Path
) -> None:
    text = load_template("en").to_yaml()
    template = parse_template(text.replace("{attributes}", "{genre}"), where="mine")
    checkpoint = write_checkpoint(tmp_path / "checkpoint", template=replace(template, name="mine"))
    with pytest.raises(ConfigError, match=r"unknown field \{genre\}, known: attributes, .*stock, title, year"):
        shipped(checkpoint=checkpoint)


FILES = (
    "manifest.json",
    "flmrec.json",
    "backbone/model.safetensors",
    "backbone/config.json",
    "head.safetensors",
    "biases.parquet",
    "biases.train.parquet",
    "calibration.json",
    "template.yaml",
    "tokenizer/tokenizer.json",
    "metrics.json",
)


def test_a_checkpoint_with_any_file_lost_cut_or_changed_starts_no_task(
    spark: SparkSession, shipped: Callable[..., Shipped], folder: Path, tmp_path: Path
) -> None:
    untouched = spark.createDataFrame([], "item_id string, title string").where("assert_true(false) is null")
    damage: dict[str, Callable[[Path], object]] = {
        "lost": Path.unlink,
        "cut": lambda file: file.write_bytes(file.read_bytes()[:-2]),
        "changed": lambda file: file.write_bytes(file.read_bytes()[:-1] + b"~"),
    }
    for kind, harm in damage.items():
        for name in FILES:
            broken = Path(shutil.copytree(folder, tmp_path / kind / name))
            harm(broken / name)
            with pytest.raises(CheckpointError, match=name.rpartition("/")[2].replace(".", r"\.")):
                shipped(checkpoint=broken, items=untouched)


def test_a_checkpoint_that_is_missing_or_of_another_format_is_told(
    shipped: Callable[..., Shipped], folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere/manifest\.json: not found, expected a checkpoint"):
        shipped(checkpoint=tmp_path / "nowhere")
    foreign = Path(shutil.copytree(folder, tmp_path / "foreign"))
    content = json.loads((foreign / "manifest.json").read_text())
    (foreign / "manifest.json").write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(CheckpointError, match="got format 99, expected 3"):
        shipped(checkpoint=foreign)


def test_a_tokenizer_of_another_model_is_told(
    shipped: Callable[..., Shipped], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flmrec_spark.lm.segments.PROBE", "another text")
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="tokenizer: does not match the model"):
        shipped(checkpoint=checkpoint)
