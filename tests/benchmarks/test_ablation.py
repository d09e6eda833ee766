"""benchmarks/ablation.py on a tiny world: every arm is trained alike with every seed and compared by user."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import ablation
from flmrec_spark.config import load_config
from flmrec_spark.lm import checkpoint
from tests.prepared import tiny_config, write_prepared
from tests.tiny import save_tiny


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_prepared(tmp_path / "tables")
    save_tiny(tmp_path / "model", n_layers=2)
    tiny_config(tmp_path)
    return tmp_path / "config.yaml"


def rows_of(config: Path, table: str, *more: str, seeds: Sequence[str] = ("1", "2")) -> list[dict[str, Any]]:
    file = config.parent / "rows.json"
    small = ["--bootstrap", "40", "--workers", "1", "--threads", "1", "--folder", str(config.parent / "arms")]
    more = (*more, "--seeds", *seeds, "--json", str(file), "finetune.max_steps=1", "finetune.factors.epochs=1")
    assert ablation.main([table, "--config", str(config), *small, *more]) == 0
    found: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return found


def test_each_part_is_compared_with_the_model_without_it(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arms = ["text, liked history", "+ profiles", "+ collaborative tokens"]
    rows = rows_of(config, "parts", "--only", *arms, "--users", "20", "model.collaborative.dimension=4")
    assert [(row["name"], row["against"]) for row in rows] == [
        ("text, liked history", "text, liked history"),
        ("+ profiles", "text, liked history"),  # what it would be compared with was not asked for
        ("+ collaborative tokens", "+ profiles"),
    ]
    for row in rows:
        assert len(row["auc_seeds"]) == len(row["train_seconds"]) == 2
        assert row["auc"] == pytest.approx(np.mean(row["auc_seeds"]))
    own, before = (next(row for row in rows if row["name"] == arm) for arm in reversed(arms[1:]))
    assert own["ndcg@10_difference"] == pytest.approx(own["ndcg@10"] - before["ndcg@10"])
    likes = checkpoint.load(config.parent / "arms/text_liked_history-2")
    assert likes.segmenter().template.disliked.text == ""
    assert likes.collaborative() is None
    assert checkpoint.load(config.parent / "arms/collaborative_tokens-1").settings.n_factors > 0
    assert "+ collaborative tokens" in capsys.readouterr().out


def test_every_join_is_compared_with_the_stock_pair(config: Path) -> None:
    rows = rows_of(config, "joins", "--users", "20", seeds=["1"])
    names = ["full", "join_layer 0", "join_layer 1", "attention", "join_layer 2", "join_layer 1, taught by full"]
    assert [row["name"] for row in rows] == names
    assert [row["against"] for row in rows] == ["full"] * 5 + ["join_layer 1"]
    assert ["ndcg@10" in row for row in rows] == [False, False, True, True, True, True]
    assert ["ndcg@10_difference" in row for row in rows] == [False] * 5 + [True]  # the stock pair has no lists on a CPU
    taught, alone = (checkpoint.load(config.parent / f"arms/join_layer_1{kind}-1") for kind in ("_taught_by_full", ""))
    assert taught.digest != alone.digest
    assert rows[0]["auc_difference"] == 0.0


def test_the_last_two_parts_are_the_config_without_and_with_tokens(config: Path) -> None:
    first, *_, factors, graded, near, profiles, last = ablation.parts_of(load_config(config), config.parent)
    assert first.against == first.name
    without, neither = "model.collaborative.tokens=false", "model.collaborative.profile=0"
    lone = "model.collaborative.neighbours=0"
    assert factors.settings == (without, neither, lone, "finetune.factors.graded_labels=false")
    assert graded.settings == (without, neither, lone)
    assert near.settings == (without, neither)
    assert (profiles.settings, last.settings) == ((without,), ("model.collaborative.tokens=true",))


def test_a_setting_that_is_taken_for_an_arm_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = ["joins", "--config", str(config), "--only", "full", "finetune.max_steps=1"]
    with pytest.raises(SystemExit) as ended:
        ablation.main(told)
    assert ended.value.code == 2
    assert "--only: got ['finetune.max_steps=1'], expected some of ['full', " in capsys.readouterr().err
