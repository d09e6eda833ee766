"""benchmarks/quality.py: which commands it runs, and what it makes of the table `evaluation` of several seeds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from benchmarks import quality
from tests.world import write_config

# run, model, metric, k -> value, low, high
MEASURED = {
    ("run-1", "flm", "auc", 0): (0.80, 0.78, 0.82),
    ("run-2", "flm", "auc", 0): (0.84, 0.81, 0.87),
    ("run-1", "ease", "auc", 0): (0.70, 0.68, 0.72),
    ("run-2", "ease", "auc", 0): (0.70, 0.68, 0.72),
    ("run-1", "flm - ease", "auc", 0): (0.10, 0.07, 0.13),
    ("run-2", "flm - ease", "auc", 0): (0.14, 0.11, 0.17),
    ("run-1", "flm", "ndcg", 10): (0.20, None, None),
    ("run-2", "flm", "ndcg", 10): (0.30, 0.2, 0.4),
    ("other", "flm", "auc", 0): (0.1, 0.1, 0.1),
}


def test_a_row_is_the_mean_over_the_seeds_and_its_difference_covers_each_seeds_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    rows = [
        {
            "run_id": run,
            "model": model,
            "metric": metric,
            "k": k,
            "segment": segment,
            "value": value,
            "low": low,
            "high": high,
        }
        for (run, model, metric, k), (value, low, high) in MEASURED.items()
        for segment in ("all", "cold users")
    ]
    for row in rows:
        row["value"] -= 0.05 * (row["segment"] != "all" and " - " not in row["model"])
    schema = pa.schema(
        [(name, pa.string()) for name in ("run_id", "model", "metric", "segment")]
        + [("k", pa.int32())]
        + [(name, pa.float64()) for name in ("value", "low", "high")]
    )
    write_deltalake(str(tmp_path / "tables/evaluation"), pa.Table.from_pylist(rows, schema=schema))
    asked: list[list[str]] = []

    def answered(command: Sequence[str], more: dict[str, str]) -> dict[str, object]:
        asked.append(list(command))
        seed = next((part[-1] for part in command if part.startswith("finetune.seed=")), "")
        return {"seconds": 60.0 + int(seed or 0), "run_id": f"run-{seed}"}

    monkeypatch.setattr(quality, "_last_line", answered)
    file = tmp_path / "rows.json"
    arguments = ["--config", str(config), "--seeds", "1", "2", "--folder", str(tmp_path / "own"), "--json", str(file)]
    assert quality.main([*arguments, "evaluate.bootstrap=9"]) == 0
    told = json.loads(file.read_text())
    flm, ease = told["rows"]
    assert (flm["name"], ease["name"]) == ("flm", "ease")
    assert flm["auc"] == {
        "mean": pytest.approx(0.82),
        "sd": pytest.approx(np.std([0.8, 0.84], ddof=1)),
        "interval": [0.78, 0.87],
        "seeds": [0.8, 0.84],
    }
    assert flm["ndcg@10"]["interval"] is None  # one seed has none
    assert (flm["uauc"], ease["ndcg@10"]) == (None, None)
    assert ease["flm_less"]["auc"]["interval"] == [0.07, 0.17]
    assert ease["flm_less"]["auc"]["mean"] == pytest.approx(0.12)
    assert told["machine"]["train_seconds"] == [61.0, 62.0]
    jobs = [Path(command[1]).name for command in asked]
    assert sorted(jobs) == ["evaluate.py", "evaluate.py", "finetune.py", "finetune.py", "prepare.py"]
    assert all("evaluate.bootstrap=9" in command for command in asked)
    assert [f"checkpoint={tmp_path}/own/seed-{seed}" in asked[-3 + seed] for seed in (1, 2)] == [True, True]
    assert "+0.1200 (+0.0700 .. +0.1700)" in capsys.readouterr().out
    assert quality.main([*arguments, "--segment", "cold users"]) == 0
    assert json.loads(file.read_text())["rows"][0]["auc"]["mean"] == pytest.approx(0.77)


def test_a_command_that_fails_ends_with_what_it_said() -> None:
    with pytest.raises(RuntimeError, match="exit code 3: no such table"):
        quality._last_line(["bash", "-c", "echo no such table; exit 3"], {})
