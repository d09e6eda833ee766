"""benchmarks/training.py: both trainings run on the same pairs and the JSON has what it promises."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks/training.py"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_trainings_are_measured_on_the_same_number_of_pairs(precision, tmp_path, capfd):
    spec: Any = importlib.util.spec_from_file_location("training_benchmark", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)
    own = ["--tiny", "--users", "8", "--targets", "4", "--precision", precision, "--json", str(tmp_path / "own.json")]
    assert script.main(own) == 0
    found = json.loads((tmp_path / "own.json").read_text())
    assert found["machine"]["peak_gflops"]["fp32"] > 0
    stock, grouped = found["rows"]
    assert (stock["examples"], grouped["examples"], stock["ratio"]) == (32, 32, 1.0)
    assert grouped["ratio"] == pytest.approx(grouped["examples_per_s"] / stock["examples_per_s"])
    assert {row["precision"] for row in (stock, grouped)} == {precision}
    assert all(0.0 <= row["valid_auc"] <= 1.0 for row in (stock, grouped))
    assert "transformers Trainer, one row per pair" in capfd.readouterr().out
