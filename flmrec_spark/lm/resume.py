"""Exact resume: weights, optimizer state and progress of an interrupted training, nothing executable among them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flmrec_spark.errors import CheckpointError


def save_state(
    folder: Path, modules: Mapping[str, nn.Module], optim: torch.optim.Optimizer, progress: Mapping[str, object]
) -> None:
    """Writes a resume point: weights and optimizer state as safetensors, progress as JSON; the last one wins."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for place, state in optim.state_dict()["state"].items():
        tensors |= {f"optimizer.{place}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    name = f"step-{progress['step']}"
    save_file(
        {key: value.detach().contiguous().clone() for key, value in tensors.items()}, folder / f"{name}.safetensors"
    )
    draft = folder / "progress.draft"
    draft.write_text(json.dumps({**progress, "tensors": f"{name}.safetensors"}), encoding="utf-8")
    draft.rename(folder / "progress.json")
    for file in folder.glob("step-*.safetensors"):
        if file.name != f"{name}.safetensors":
            file.unlink()


def key_of(folder: Path) -> str | None:
    """The `key` of the progress that a resume point holds; None when there is no readable one."""
    try:
        return str(json.loads((folder / "progress.json").read_text(encoding="utf-8"))["key"])
    except (OSError, ValueError, KeyError):
        return None


def load_state(folder: Path, modules: Mapping[str, nn.Module], optim: torch.optim.Optimizer) -> dict[str, object]:
    """Puts a resume point back; returns its progress. Raises CheckpointError when it does not fit or is damaged."""
    try:
        progress: dict[str, object] = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / str(progress["tensors"]))
        for name, module in modules.items():
            prefix = f"{name}."
            own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            module.load_state_dict(own)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as fault:
        raise CheckpointError(
            f"{folder}: resume point not usable, --force starts anew: {' '.join(str(fault).split())[:300]}"
        ) from fault
    state = optim.state_dict()
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, place, part = key.split(".", 2)
            state["state"].setdefault(int(place), {})[part] = value
    optim.load_state_dict(state)
    return progress
