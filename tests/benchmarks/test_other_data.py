"""benchmarks/other_data.py: the two logs that it makes, by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from benchmarks import other_data
from flmrec_spark.config import load_config
from flmrec_spark.errors import InputError

ROOT = Path(__file__).parent.parent.parent
HEAD = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


def written(folder: Path, rows: list[tuple[int, int, int, int]]) -> list[str]:
    (folder / "ml-100k").mkdir()
    text = HEAD + "".join("\t".join(map(str, row)) + "\n" for row in rows)
    (folder / "ml-100k" / "ml-100k.inter").write_text(text)
    return ["--data", str(folder), "--folder", str(folder / "other")]


def test_a_liked_film_is_viewed_and_bought_and_labels_are_split_by_time(tmp_path: Path) -> None:
    rows = [(user, 7, 5 if user == 3 else 3, 1000 - 100 * user) for user in range(10)]
    assert other_data.main(written(tmp_path, rows)) == 0
    shop = pd.read_csv(tmp_path / "other" / "shop.csv")
    assert list(shop.columns) == ["member", "sku", "event", "timestamp"]
    assert shop[shop["event"] == "view"]["member"].tolist() == list(range(9, -1, -1))
    assert shop[shop["event"] == "purchase"].to_numpy().tolist() == [[3, 7, "purchase", 760]]
    labels = pd.read_csv(tmp_path / "other" / "labels.csv")
    assert labels["label"].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert labels["split"].tolist() == ["test", "valid", *["train"] * 8]


def test_the_configs_name_the_columns_of_the_logs(tmp_path: Path) -> None:
    other_data.main(written(tmp_path, [(1, 7, 5, 0)]))
    for name in ("shop", "labels"):
        source = load_config(ROOT / "benchmarks" / f"{name}.yaml").prepare.interactions
        assert source.path == f"build/other/{name}.csv"
        assert set(source.columns.values()) <= set(pd.read_csv(tmp_path / "other" / f"{name}.csv").columns)


def test_missing_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ml-100k.inter: not found; run scripts/fetch_movielens.py first"):
        other_data.main(["--data", str(tmp_path)])
