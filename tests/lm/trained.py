"""What tests of whole fine-tunings look at."""

from __future__ import annotations

from pathlib import Path

import torch

from flmrec_spark.lm import checkpoint

N_STEPS = 8  # of the tiny world: 28 examples, 8 a step, two epochs
RESUMABLE: dict[str, object] = {"dropout": 0.2, "accumulate_steps": 2, "save_every": 3, "validate_every": 4}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(checkpoint.load(folder / "checkpoint").model().state_dict())


def assert_no_checkpoint(folder: Path) -> None:
    assert not (folder / "checkpoint").exists()
    assert not (folder / "checkpoint.draft").exists()


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    assert [name for name in got if not torch.equal(got[name], expected[name])] == []
