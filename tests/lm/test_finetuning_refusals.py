"""Fine-tuning that cannot be: told in one line, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from flmrec_spark import columns as c
from flmrec_spark.errors import CheckpointError, ConfigError, EnvironmentFault, InputError
from flmrec_spark.lm import factor_stage
from flmrec_spark.lm.finetuning import finetune
from flmrec_spark.lm.trainer import Trainer
from tests.lm.trained import assert_no_checkpoint
from tests.prepared import prepared_rows, tiny_config, write_prepared


def without_valid(world: Path) -> None:
    rows = prepared_rows()
    rows["examples"] = [row for row in rows["examples"] if row[c.SPLIT] != c.VALID]
    write_prepared(world / "tables", rows)


def test_nothing_to_validate_on_is_told_and_nothing_is_written(world):
    without_valid(world)
    with pytest.raises(InputError, match=r"table examples: got no usable row of split valid, expected some"):
        finetune(tiny_config(world))
    assert_no_checkpoint(world)


@pytest.mark.parametrize(
    ("sections", "error", "told"),
    [
        ({"tables": {"root": "nowhere"}}, InputError, "table interactions: not found"),
        ({"model": {"path": "nowhere"}}, CheckpointError, "nowhere: got no folder, expected a pretrained model"),
        ({"model": {"join_layer": 9}}, ConfigError, r"model.join_layer: got 9, expected 0 .. 2"),
        ({"prompts": {"user_tokens": 120}}, ConfigError, r"user_tokens \+ item_tokens = 160, expected at most"),
        ({"model": {"head": "answer"}}, ConfigError, "model.head: got answer, expected linear"),
        (
            {"finetune": {"adapter": {"method": "adalora"}, "max_steps": 2}},
            ConfigError,
            "finetune.adapter.method: got adalora with 2 steps",
        ),
        ({"prompts": {"template": "nowhere"}}, ConfigError, r"prompts.template: got nowhere, expected one of en, zh"),
    ],
)
def test_what_does_not_fit_is_told_and_nothing_is_written(world, sections, error, told, monkeypatch):
    monkeypatch.setattr(factor_stage, "fitted", lambda *_: pytest.fail("factors were learned before"))
    with pytest.raises(error, match=told):
        finetune(tiny_config(world, **sections))
    assert_no_checkpoint(world)


def test_a_training_that_diverges_says_so(world, monkeypatch):
    monkeypatch.setattr(Trainer, "_backward", lambda *_: float("nan"))
    told = (
        r"finetune: step 1 of \d+ had a loss of nan and a gradient of .*, expected numbers: .* lower finetune.learning_"
    )
    with pytest.raises(ConfigError, match=told):
        finetune(tiny_config(world))
    assert_no_checkpoint(world)


def test_a_gradient_that_is_no_number_is_told_before_it_spoils_the_weights(world, monkeypatch):
    real = Trainer._backward

    def spoilt(self, *given):
        value = real(self, *given)
        next(self.model.parameters()).grad[:] = float("inf")
        return value

    monkeypatch.setattr(Trainer, "_backward", spoilt)
    with pytest.raises(ConfigError, match=r"finetune: step 1 of \d+ had a loss of \d.* and a gradient of inf"):
        finetune(tiny_config(world))
    assert_no_checkpoint(world)


def test_too_little_memory_of_a_cpu_is_told_with_what_takes_less(world, monkeypatch):
    def refused(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9000000000 bytes")

    monkeypatch.setattr(Trainer, "_backward", refused)
    with pytest.raises(
        EnvironmentFault, match=r"finetune: out of memory with finetune.examples_per_step = 8 in 1 parts"
    ):
        finetune(tiny_config(world))
    assert_no_checkpoint(world)


def test_a_folder_that_is_no_checkpoint_is_refused_before_the_training(world, monkeypatch):
    (world / "checkpoint").mkdir()
    (world / "checkpoint/notes.txt").write_text("mine")
    monkeypatch.delattr(Trainer, "learn")
    with pytest.raises(CheckpointError, match="something that is no checkpoint"):
        finetune(tiny_config(world))
    assert (world / "checkpoint/notes.txt").read_text() == "mine"
