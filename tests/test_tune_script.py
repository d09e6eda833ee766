"""scripts/tune.py: what it prints and writes, and how it says no."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from flmrec_spark.config import load_config
from tests.prepared import tiny_config, write_prepared
from tests.tiny import save_tiny

SCRIPT = Path(__file__).parent.parent / "scripts/tune.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("tune_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_it_writes_the_best_config_and_one_line_of_json(main, tmp_path, capsys):
    write_prepared(tmp_path / "tables")
    save_tiny(tmp_path / "model", n_layers=2)
    tiny_config(tmp_path, tune={"space": {"finetune.max_steps": [1, 2]}, "trials": 2, "metric": "auc"})
    output = tmp_path / "best.yaml"
    assert main(["--config", str(tmp_path / "config.yaml"), "--output", str(output)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["job"], told["trials"], told["output"]) == ("tune", 2, str(output))
    assert load_config(output).finetune.max_steps == told["set"]["finetune.max_steps"]
    assert output.read_text().startswith("# Trial")


def test_a_missing_folder_is_refused_before_anything_is_read(main, tmp_path, capsys):
    assert main(["--config", "none.yaml", "--output", str(tmp_path / "none" / "best.yaml")]) == 5
    assert "--output: got" in capsys.readouterr().err
