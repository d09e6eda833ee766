"""benchmarks/compression.py on a tiny world: every arm is trained alike and compared by user."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import compression
from flmrec_spark.lm import checkpoint
from tests.prepared import tiny_config, write_prepared
from tests.tiny import save_tiny


def test_every_arm_is_compared_with_its_own_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_prepared(tmp_path / "tables")
    save_tiny(tmp_path / "model", n_layers=2)
    tiny_config(tmp_path)
    file = tmp_path / "rows.json"
    sizes = ["--steps", "2", "--short-steps", "1", "--short-examples", "4", "--bootstrap", "40", "--seconds", "0.001"]
    common = ["--config", str(tmp_path / "config.yaml"), "--folder", str(tmp_path / "arms"), "--json", str(file)]
    assert compression.main([*common, *sizes, "model.bias_terms=false"]) == 0
    rows = json.loads(file.read_text())["rows"]
    n_formats = len(compression.native_precisions())
    assert [row["name"] for row in rows] == [
        *["all layers"] * n_formats,
        "half the layers",
        "half the layers, taught by all",
        "short: all layers",
        "short: full",
        "short: all layers, taught by full",
    ]
    assert [(row["layers"], row["steps"]) for row in rows[n_formats - 1 : n_formats + 1]] == [(2, 2), (1, 2)]
    assert all(row["pairs_per_s"] > 0 and 0 <= row["auc"] <= 1 for row in rows)
    assert (rows[0]["auc_difference"], rows[0]["auc_difference_interval"]) == (0.0, [0.0, 0.0])
    assert {"ndcg@10" in row for row in rows[:-3]} == {True}
    assert {"ndcg@10" in row for row in rows[-3:]} == {False}
    taught = checkpoint.load(tmp_path / "arms" / "half_the_layers_taught_by_all")
    assert taught.model().family.n_layers == 1
    assert "half the layers" in capsys.readouterr().out
