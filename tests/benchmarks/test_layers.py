"""benchmarks/layers.py: each part of the kernel's layers has its row in every precision that this CPU has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import layers
from flmrec_spark.lm import native, shapes


@pytest.mark.skipif(native.build() is None, reason="no C compiler, or a CPU that the kernel does not know")
def test_every_part_has_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1}
    monkeypatch.setitem(shapes.SHAPES, "MiniLM-L6", {**tiny, "intermediate_size": 64})
    assert layers.main(["--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    parts = [row["part"] for row in rows if row["precision"] == "fp32"]
    assert parts[-3:] == ["user, all layers", "pairs, join: layer", "pairs, join: attention"]
    assert len(parts) == 7
    assert all(row["us"] > 0 and row["fraction_of_peak"] > 0 for row in rows)
