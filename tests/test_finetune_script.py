"""scripts/finetune.py: exit codes, one-line errors and the line that it prints."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from safetensors import SafetensorError

from flmrec_spark.lm import folders
from flmrec_spark.prompts import load_template
from tests.prepared import tiny_config, write_prepared
from tests.tiny import save_tiny

SCRIPT = Path(__file__).parent.parent / "scripts/finetune.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("finetune_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    write_prepared(folder / "tables")
    save_tiny(folder / "model", n_layers=2)
    return folder


@pytest.fixture
def world(prepared: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(prepared, tmp_path / "world"))
    tiny_config(folder)
    return folder


def command(world: Path, *more: str) -> list[str]:
    return ["--config", str(world / "config.yaml"), *more]


def test_it_trains_prints_one_line_of_json_and_is_already_done_the_second_time(script, world, capsys):
    assert script.main(command(world, "finetune.max_steps=2")) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["job"], first["status"], first["steps"]) == ("finetune", "done", 2)
    assert "history" not in first
    assert script.main(command(world, "finetune.max_steps=2")) == 0
    second = json.loads(capsys.readouterr().out)
    assert (second["status"], second["digest"]) == ("already done", first["digest"])
    assert script.main(command(world, "finetune.max_steps=2", "--force")) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == first["digest"]


def test_it_stops_after_so_many_steps_and_goes_on(script, world, capsys):
    assert script.main(command(world, "--stop-after", "4")) == 0
    assert json.loads(capsys.readouterr().out) == {"job": "finetune", "status": "stopped", "step": 4}
    assert not (world / "checkpoint").exists()
    assert script.main(command(world)) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 8


@pytest.mark.parametrize(
    ("name", "expected"), [("OMP_WAIT_POLICY", "PASSIVE"), ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")]
)
@pytest.mark.parametrize("told", [None, "7"])
def test_torch_loads_with_defaults_of_ours_unless_told_otherwise(script, world, monkeypatch, name, told, expected):
    monkeypatch.setenv(name, told or "7")  # so that it is restored
    if told is None:
        monkeypatch.delenv(name)
    assert script.main(command(world, "finetune.optimizer=sgd", "finetune.max_steps=1")) == 0
    assert os.environ[name] == (told or expected)


def test_it_prints_the_effective_config(script, world, capsys):
    assert script.main(command(world, "finetune.epochs=7", "--print-config")) == 0
    assert "  epochs: 7\n" in capsys.readouterr().out


def own_template(world: Path) -> None:
    text = load_template("en").to_yaml().replace("{attributes}", "{colour}")
    (world / "own.yaml").write_text(text)


def without_items(world: Path) -> None:
    shutil.rmtree(world / "tables/items")


def without_weights(world: Path) -> None:
    (world / "model/model.safetensors").unlink()


def without_model(world: Path) -> None:
    shutil.rmtree(world / "model")


def nothing(world: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("damage", "override", "code", "told"),
    [
        (nothing, "finetune.epochz=3", 2, "ConfigError: .*did you mean finetune.epochs"),
        (nothing, "finetune.seed=-1", 2, "ConfigError: .*finetune.seed: got -1"),
        (own_template, "prompts.template={world}/own.yaml", 2, "unknown field {colour}, known: attributes, genre"),
        (without_items, "finetune.epochs=1", 3, "InputError: table items: not found"),
        (without_weights, "finetune.epochs=1", 4, "CheckpointError: .*model: got no safetensors file"),
        (without_model, "finetune.epochs=1", 4, "CheckpointError: .*model: got no folder"),
    ],
)
def test_a_fault_is_one_line_with_its_exit_code_and_leaves_nothing(script, world, capsys, damage, override, code, told):
    damage(world)
    assert script.main(command(world, override.replace("{world}", str(world)))) == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("flmrec finetune: ")
    assert "Traceback" not in error
    assert re.search(told, error), error
    assert not (world / "checkpoint").exists()


def test_what_nobody_foresaw_is_one_line_with_its_place(script, world, capsys, monkeypatch):
    monkeypatch.setattr("flmrec_spark.lm.finetuning.finetune", lambda *_, **__: {}["user 0042"])
    assert script.main(command(world)) == 1
    error = capsys.readouterr().err
    assert re.search(r"flmrec finetune: unexpected KeyError at \w+\.py:\d+; --traceback shows it whole\n$", error)
    assert "0042" not in error
    assert "Traceback" not in error


def test_a_disk_that_is_full_at_the_end_is_a_fault_of_the_machine(script, world, capsys, monkeypatch):
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("flmrec_spark.lm.checkpoint.save_file", full)
    assert script.main(command(world, "finetune.max_steps=1")) == 5
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(r"EnvironmentFault: \S*/checkpoint: not written: .*No space left on device", error)
    assert not (world / "checkpoint").exists()


def test_two_trainings_of_one_checkpoint_do_not_mix(script, world, capsys):
    with folders.held(world / "checkpoint"):
        assert script.main(command(world, "finetune.max_steps=1")) == 7
    assert "another process is making it" in capsys.readouterr().err
    assert script.main(command(world, "finetune.max_steps=1")) == 0


def test_a_stack_trace_is_shown_when_it_is_asked_for(script, world, capsys):
    without_items(world)
    assert script.main(command(world, "--traceback")) == 3
    assert "Traceback (most recent call last)" in capsys.readouterr().err
