"""Exact resume: weights, optimizer state and progress of an interrupted training, nothing executable among them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flmrec_spark.errors import CheckpointError
from flmrec_spark.lm import folders

BEST = "best.safetensors"


def kept_state(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of modules by `module.key`, without frozen weights: those are in the pretrained folder."""
    found: dict[str, Tensor] = {}
    for name, module in modules.items():
        frozen = {key for key, value in module.named_parameters(remove_duplicate=False) if not value.requires_grad}
        found |= {f"{name}.{key}": value for key, value in module.state_dict().items() if key not in frozen}
    return found


def put_back(modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Loads what `kept_state` gave. Raises RuntimeError when a tensor is missing, too many or of another shape."""
    expected = set(kept_state(modules))
    own = {key for key in tensors if key.partition(".")[0] in modules}
    if own != expected:
        raise RuntimeError(f"got other tensors than the model has, such as {sorted(own ^ expected)[0]}")
    for name, module in modules.items():
        prefix = f"{name}."
        parts = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        module.load_state_dict(parts, strict=False)


def save_best(folder: Path, modules: Mapping[str, nn.Module]) -> None:
    """Keeps the weights as the best so far. Raises EnvironmentFault on a full disk."""
    with folders.written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / "best.draft"
        save_file(_plain(kept_state(modules)), draft)
        draft.replace(folder / BEST)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}


def save_state(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optim: torch.optim.Optimizer,
    progress: Mapping[str, object],
    extra: Mapping[str, Tensor],
) -> None:
    """Writes a resume point: weights, optimizer and `extra` as safetensors, progress as JSON; the last one wins.

    Raises EnvironmentFault on a full disk.
    """
    tensors = kept_state(modules) | {f"extra.{key}": value for key, value in extra.items()}
    for place, state in optim.state_dict()["state"].items():
        tensors |= {f"optimizer.{place}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    name = f"step-{progress['step']}"
    with folders.written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_plain(tensors), folder / f"{name}.safetensors")
        draft = folder / "progress.draft"
        draft.write_text(json.dumps({**progress, "tensors": f"{name}.safetensors"}), encoding="utf-8")
        draft.rename(folder / "progress.json")
    for file in folder.glob("step-*.safetensors"):
        if file.name != f"{name}.safetensors":
            file.unlink()


def progress_of(folder: Path) -> dict[str, object]:
    """The progress that a resume point holds, its `key` among it; empty when there is no readable one."""
    try:
        found = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "key" in found else {}


def load_state(
    folder: Path, modules: Mapping[str, nn.Module], optim: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Puts a resume point back: (progress, extra). Raises CheckpointError when it does not fit or is damaged."""
    try:
        progress: dict[str, Any] = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / str(progress["tensors"]))
        put_back(modules, tensors)
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
    return progress, {key.removeprefix("extra."): value for key, value in tensors.items() if key.startswith("extra.")}
