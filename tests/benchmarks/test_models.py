"""benchmarks/models.py and benchmarks/lora.py with tiny models: every family has a row of what was measured."""

from __future__ import annotations

import io
import json
import subprocess
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from benchmarks import lora, models
from flmrec_spark.lm.families.registry import DECODERS, ENCODER_DECODERS, ENCODERS
from flmrec_spark.lm.shapes import SHAPES, TINY
from tests.prepared import tiny_config, write_prepared
from tests.tiny import save_tiny


def test_the_shapes_are_of_every_kind_and_have_a_tiny_one() -> None:
    types = {values["model_type"] for values in SHAPES.values()}
    assert types == set(TINY)
    assert all(types & set(kind) for kind in (ENCODERS, DECODERS, ENCODER_DECODERS))


def test_a_shape_of_each_kind_is_measured_in_processes_of_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, names = tmp_path / "rows.json", ["MiniLM-L6", "Qwen2.5-0.5B", "mT5-small"]
    start = subprocess.run

    def run(command: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
        if command[-3] == names[0]:
            return start(command, **given)
        with redirect_stdout(io.StringIO()) as printed:  # the others in this process, whose memory says nothing
            assert models.main(command[2:]) == 0
        return subprocess.CompletedProcess(command, 0, printed.getvalue())

    monkeypatch.setattr(models.subprocess, "run", run)
    sizes = ["--items", "40", "--prefixes", "2", "--pairs", "3", "--steps", "2", "--seconds", "0.001"]
    assert models.main(["--tiny", "--shapes", *names, *sizes, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["name"] for row in rows] == names
    for row in rows:
        assert row["ratio_last"] == pytest.approx(row["last_pairs_per_s"] / row["stock_pairs_per_s"])
        assert min(row["items_per_s"], row["first_pairs_per_s"], row["train_examples_per_s"]) > 0
    assert 0.2 < rows[0]["rest_gib"] < min(rows[0]["train_peak_gib"], rows[0]["score_peak_gib"]) < 4
    assert rows[0]["trained_m"] == rows[0]["parameters_m"]
    assert rows[1]["trained_m"] < rows[1]["parameters_m"]  # LoRA
    assert "Qwen2.5-0.5B" in capfd.readouterr().out


def test_a_decoder_is_fine_tuned_with_lora_and_scored(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_prepared(tmp_path / "tables")
    save_tiny(tmp_path / "model", n_layers=2)
    tiny_config(tmp_path)
    file, common = tmp_path / "rows.json", ["--config", str(tmp_path / "config.yaml"), "--folder", str(tmp_path)]
    assert lora.main([*common, "--tiny", "--items", "9", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [(row["part"], row["steps"]) for row in rows] == [("training", 2), ("scoring", None)]
    assert rows[1]["pairs_per_s"] > 0
    assert all(0.2 < row["peak_gib"] < 4 for row in rows)
    assert "LoRA" in (lora.__doc__ or "") and "scoring" in capfd.readouterr().out
