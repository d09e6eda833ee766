"""A training that was interrupted goes on where it was saved and ends with the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flmrec_spark.errors import CheckpointError
from flmrec_spark.lm import checkpoint, resume, trainer
from flmrec_spark.lm.families.loading import load_backbone
from flmrec_spark.lm.finetuning import finetune
from flmrec_spark.lm.trainer import Trainer
from tests.lm.trained import RESUMABLE, assert_no_checkpoint, assert_same, weights
from tests.prepared import tiny_config


@pytest.fixture(scope="module")
def unbroken(prepared_world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights of a training that nothing interrupts, with dropout, accumulation and a resume point every 3 steps."""
    folder = tmp_path_factory.mktemp("unbroken")
    for name in ("tables", "model"):
        (folder / name).symlink_to(prepared_world / name)
    finetune(tiny_config(folder, finetune=RESUMABLE))
    return weights(folder)


@pytest.mark.parametrize("stops", [[1], [3], [4], [5, 1], [7]])
def test_a_training_that_stops_and_goes_on_ends_with_the_same_bits(world, unbroken, stops):
    config = tiny_config(world, finetune=RESUMABLE)
    for stop_after in stops:
        assert finetune(config, stop_after=stop_after)["status"] == "stopped"
        assert_no_checkpoint(world)
    assert finetune(config)["status"] == "done"
    assert_same(weights(world), unbroken)
    assert not (world / "checkpoint.training").exists()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_state_of_the_optimizer_comes_back(world, optimizer):
    config = tiny_config(world, finetune={"optimizer": optimizer, "save_every": 1})
    first = finetune(config)["digest"]
    finetune(config, force=True, stop_after=5)
    assert finetune(config)["digest"] == first


def test_a_kill_between_a_save_and_its_note_is_survived(world, unbroken):
    config = tiny_config(world, finetune=RESUMABLE)
    finetune(config, stop_after=4)
    folder = world / "checkpoint.training"
    (folder / "step-6.safetensors").write_bytes(b"half")
    (folder / "progress.draft").write_text('{"step": 6')
    (folder / "best.draft").write_bytes(b"half")
    finetune(config)
    assert_same(weights(world), unbroken)


def test_a_kill_after_the_last_step_goes_on_to_the_checkpoint(world, unbroken, monkeypatch):
    config = tiny_config(world, finetune=RESUMABLE)

    def killed(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            finetune(config)
    assert_no_checkpoint(world)
    monkeypatch.setattr(Trainer, "learn", killed)  # nothing is left to learn
    assert finetune(config)["status"] == "done"
    assert_same(weights(world), unbroken)


def test_what_another_training_left_is_not_used(world, unbroken):
    finetune(tiny_config(world, finetune={**RESUMABLE, "seed": 9}), stop_after=4)
    finetune(tiny_config(world, finetune=RESUMABLE))
    assert_same(weights(world), unbroken)


def test_a_call_that_stops_leaves_its_work_to_the_next_whatever_is_saved_besides(world):
    config = tiny_config(world, finetune={"save_every": None, "validate_every": None})
    assert finetune(config, stop_after=2) == {"status": "stopped", "step": 2, "rank": 0}
    assert finetune(config, stop_after=1)["step"] == 3
    assert finetune(config)["steps"] > 3


def test_a_resumed_training_keeps_the_number_format_that_it_began_with(world, monkeypatch):
    config = tiny_config(world, finetune={"precision": "auto"})
    monkeypatch.setattr(trainer, "resolve", lambda *_, **__: "fp32")
    finetune(config, stop_after=4)
    monkeypatch.setattr(trainer, "resolve", lambda *_, **__: "bf16")
    assert finetune(config)["precision"] == "fp32"


def test_so_does_one_with_an_adapter_whose_frozen_weights_bf16_would_round(world, monkeypatch):
    load_backbone(world / "model").bfloat16().save_pretrained(world / "model")
    config = tiny_config(world, finetune={"precision": "auto", "adapter": {"method": "lora", "rank": 2}})
    monkeypatch.setattr(trainer, "resolve", lambda *_, **__: "fp32")
    first = finetune(config)["digest"]
    finetune(config, force=True, stop_after=2)
    monkeypatch.setattr(trainer, "resolve", lambda *_, **__: "bf16")
    assert finetune(config)["digest"] == first


def test_a_damaged_resume_point_is_named_and_force_starts_anew(world):
    config = tiny_config(world, finetune=RESUMABLE)
    finetune(config, stop_after=4)
    for file in (world / "checkpoint.training").glob("step-*"):
        file.write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"checkpoint.training: resume point not usable, --force starts anew"):
        finetune(config)
    assert finetune(config, force=True)["status"] == "done"


@pytest.mark.parametrize("content", [None, "{", "[1]", '{"step": 3}'])
def test_an_unreadable_resume_point_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "progress.json").write_text(content)
    assert resume.progress_of(tmp_path) == {}
