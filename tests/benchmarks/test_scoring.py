"""benchmarks/scoring.py on a tiny shape: every form has a row of the documented names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import scoring
from flmrec_spark.lm import native
from flmrec_spark.lm.machine import calls_per_second

NAMES = {
    "name",
    "precision",
    "join",
    "join_layer",
    "pairs_per_s",
    "ratio_to_cross_encoder",
    "fraction_of_peak",
}
TINY = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def test_every_form_has_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(scoring.SHAPES, "MiniLM-L6", TINY)
    monkeypatch.setitem(scoring.SHAPES, "BERT-base", {**TINY, "model_type": "unknown"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sizes = ["--user-tokens", "9", "--item-tokens", "4", "--items", "70", "--seconds", "0.001"]
    file = tmp_path / "rows.json"
    assert scoring.main([*sizes, "--shapes", "MiniLM-L6", "BERT-base", "--json", str(file)]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert told == ["CrossEncoder: left out: it needs --model", "BERT-base: left out: family unknown is not known"]
    read = json.loads(file.read_text())
    assert {"cpu", "versions", "peak_gflops"} <= set(read["machine"])
    rows = read["rows"]
    assert all(set(row) == NAMES for row in rows)
    assert all(row["pairs_per_s"] > 0 and row["fraction_of_peak"] > 0 for row in rows)
    forms = [("layer", 0), ("layer", 1), ("layer", 2), ("attention", 1)]
    for precision in ("fp32", "bf16"):
        own = [row for row in rows if row["precision"] == precision]
        assert [row["name"] for row in own if row["join"] == "full"] == ["stock forward"]
        for name in ("flmrec, torch alone", "flmrec") if native.build() else ("flmrec, torch alone",):
            assert [(row["join"], row["join_layer"]) for row in own if row["name"] == name] == forms
    in_bytes = [row for row in rows if row["precision"] == "int8"]
    for name, expected in (("flmrec", forms), ("flmrec, pairs alone", [("layer", 1), ("attention", 1)])):
        found = [(row["join"], row["join_layer"]) for row in in_bytes if row["name"] == name]
        assert found == (expected if native.build() else [])


def test_a_rate_is_calls_over_the_time() -> None:
    now = iter([0.0, 1.0, 2.0, 3.0, 4.0])  # the start, a look behind each of three calls, the end
    calls: list[int] = []
    assert calls_per_second(calls.append, 3.0, clock=lambda: next(now)) == 3 / 4.0
    assert calls == [0, 0, 1, 2]
