"""What a training will need of memory, estimated from the model's config before its weights are read."""

from __future__ import annotations

import gc
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from flmrec_spark.config import Config
from flmrec_spark.errors import CheckpointError, EnvironmentFault
from flmrec_spark.lm import adapters
from flmrec_spark.lm.dataset import Catalog, Examples
from flmrec_spark.lm.layers import keep_layers

log = logging.getLogger("flmrec")

_GIB = 2.0**30
_CGROUP_FILES = (  # limit and use, of version 2 and version 1
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True)
class StepShape:
    """The largest part of a step that one process computes at once, in tokens."""

    user_tokens: int  # of all prefixes, padded
    item_tokens: int  # of all distinct items, padded
    pairs: int
    tokens_per_item: int
    tokens_per_user: int


def step_shape(config: Config, train: Examples, catalog: Catalog, n_processes: int) -> StepShape:
    """The largest part of a step; items at the catalogue's mean length, each padded to a multiple of 8 tokens."""
    settings, lengths = config.finetune, catalog.tokens.lengths
    n_rows = min(-(-settings.examples_per_step // (n_processes * settings.accumulate_steps)), len(train))
    n_targets = train.targets.shape[1]
    per_item, per_user = int(np.ceil(lengths / 8).mean() * 8), max(map(len, train.prefixes))
    n_items = min(n_rows * n_targets + settings.n_negatives, len(lengths))
    return StepShape(
        n_rows * per_user, n_items * per_item, n_rows * (n_targets + settings.n_negatives), per_item, per_user
    )


@dataclass(frozen=True)
class Estimate:
    """Bytes."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        parts = [f"{name} {getattr(self, name) / _GIB:.2f}" for name in Estimate.__dataclass_fields__]
        return f"{self.total / _GIB:.2f} GiB ({', '.join(parts)})"


def estimate(config: Config, shape: StepShape, *, precision: str) -> Estimate:
    """Weights with their copies and a teacher's, gradients, the optimizer's moments, and what the backward pass needs.

    The model is built on torch's meta device, so nothing of its size is allocated.
    """
    backbone = meta_model(config)
    n_all = _n_parameters(backbone)
    settings = config.finetune
    has_adapter = settings.adapter.method != "none"
    n_trained = adapters.n_parameters(backbone, settings.adapter) if has_adapter else n_all
    n_all += n_trained if has_adapter else 0
    weights = 4 * n_all
    if precision == "bf16":  # what autocast keeps of a step; of frozen weights for the users and the items apart
        n_products = adapters.n_adapted(backbone, settings.adapter) if has_adapter else n_all
        is_rounded = has_adapter and settings.adapter.method != "dora" and _is_bf16(backbone)
        weights += -2 * n_products if is_rounded else (4 if has_adapter else 2) * n_products
    if settings.teacher is not None:
        weights += 4 * _n_parameters(_meta(f"{settings.teacher}/backbone"))
    moments = 2 if settings.optimizer == "adamw" else 1
    # The copy that is validated, of an adapter's merged one; at a time when there are no activations.
    held = (8 if has_adapter else 4) * n_all
    floats = activation_floats(backbone.config, shape, config)
    width = 3 if precision == "bf16" else 4
    activations = max(float(width * floats), float(held))
    return Estimate(float(weights), 4.0 * n_trained, 4.0 * moments * n_trained, activations)


def activation_floats(model: Any, shape: StepShape, config: Config) -> float:
    """Numbers that the backward pass of a part of a step reads, as the layers of `model` keep them.

    A layer keeps of each token Q, K, V, what was attended to, and two norms' inputs and results (9 D), and the
    feed-forward's inner state before and after its activation (2 I). With gradient checkpointing it keeps its input,
    Q, K, V and what was attended to (5 D), and with `join: full` its input alone. Of each key it keeps a weight per
    head (2 with dropout). In bf16 about half of all this is float32.
    """
    hidden, n_layers = int(model.hidden_size), int(model.num_hidden_layers)
    named = (getattr(model, name, None) for name in ("intermediate_size", "n_inner", "d_ff", "hidden_dim"))
    inner = next((value for value in named if value), 4 * hidden)
    settings, n_heads = config.finetune, float(model.num_attention_heads)
    is_lean, drops = settings.gradient_checkpointing, settings.dropout > 0
    per_token = 5.0 * hidden if is_lean else 9.0 * hidden + 2.0 * inner + (3.0 * hidden if drops else 0.0)
    per_key = 2.0 * n_heads if drops else n_heads
    if config.model.join == "full":
        length = shape.tokens_per_user + shape.tokens_per_item
        whole = 9.0 * hidden + 2.0 * inner + per_key * length
        kept = n_layers * hidden + whole if is_lean else n_layers * whole  # one layer at a time is computed again
        return shape.pairs * length * kept
    join = min(n_layers - 1 if config.model.join_layer == "last" else config.model.join_layer, n_layers)
    users = n_layers * shape.user_tokens * (per_token + per_key * shape.tokens_per_user)
    items = join * shape.item_tokens * (per_token + per_key * shape.tokens_per_item)
    items += 3.0 * hidden * shape.item_tokens if join < n_layers else 0.0
    pairs = 0.0
    for layer in range(join, n_layers):
        n_tokens = shape.pairs * (1 if layer == n_layers - 1 else shape.tokens_per_item)
        joined = 4.0 * hidden + 2.0 * n_heads * (shape.tokens_per_user + 1)  # gathered states, weights before and after
        pairs += n_tokens * (per_token + joined)
    return users + items + pairs


def expect_room(config: Config, shape: StepShape, *, precision: str, device: torch.device, per_node: int = 1) -> None:
    """Logs the estimate, and refuses a training that does not fit.

    Raises:
      EnvironmentFault: it needs more than there is, and finetune.memory_check is refuse.
    """
    needed, room = estimate(config, shape, precision=precision), available(device) / per_node
    told = f"memory: estimated {needed} for a process, got {room / _GIB:.2f} GiB free on {device.type}"
    if needed.total <= room:
        log.info(told)
        return
    settings, ways = config.finetune, [f"raise finetune.accumulate_steps above {config.finetune.accumulate_steps}"]
    if not settings.gradient_checkpointing:
        ways.append("set finetune.gradient_checkpointing: true")
    if settings.adapter.method == "none":
        ways.append("set finetune.adapter.method: lora")
    if precision == "fp32":
        ways.append("set finetune.precision: bf16, with smaller activations")
    told = f"{told}, expected enough: {', or '.join(ways)}"
    if settings.memory_check == "refuse":
        raise EnvironmentFault(f"{told}; finetune.memory_check: warn tries it all the same")
    log.warning(told)


def available(device: torch.device) -> float:
    """Free bytes: of the GPU, or of this machine and the control group that the process runs in."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()  # what this process keeps for its next tensors is free too
        return float(torch.cuda.mem_get_info(device)[0])
    return min(_free_of_machine(), _free_of_cgroup(Path("/sys/fs/cgroup")))


def _free_of_machine() -> float:
    info = Path("/proc/meminfo")
    if info.is_file():
        found = [line.split()[1] for line in info.read_text().splitlines() if line.startswith("MemAvailable:")]
        if found:
            return 1024.0 * int(found[0])
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _free_of_cgroup(root: Path) -> float:
    for limit, used in _CGROUP_FILES:
        try:
            text = (root / limit).read_text().strip()
            if text != "max":
                return float(int(text) - int((root / used).read_text()) + _cache(root / used))
        except (OSError, ValueError):
            continue
    return float("inf")


def _cache(used: Path) -> int:
    """Bytes of the page cache, which count as used and are given up when memory is wanted."""
    told = dict(line.split()[:2] for line in (used.parent / "memory.stat").read_text().splitlines())
    # The first version has both, of which the total one is of the groups within too.
    return int(told.get("total_inactive_file", told.get("inactive_file", 0)))


def _meta(folder: str) -> nn.Module:
    try:
        found = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as fault:
        raise CheckpointError(f"{folder}: not loadable: {' '.join(str(fault).split())[:300]}") from fault
    with torch.device("meta"):
        backbone: nn.Module = AutoModel.from_config(found)  # type: ignore[no-untyped-call]
    return backbone


def _n_parameters(backbone: nn.Module) -> int:
    return sum(parameter.numel() for parameter in backbone.parameters())


def _is_bf16(backbone: Any) -> bool:
    """Whether the folder's config says that its weights are stored so."""
    return str(getattr(backbone.config, "dtype", None)).endswith("bfloat16")


def meta_model(config: Config) -> nn.Module:
    """The pretrained model with the layers that are kept, without memory for its weights."""
    backbone = _meta(config.model.path)
    if config.model.keep_layers is not None:
        keep_layers(backbone, config.model.keep_layers)
    return backbone
