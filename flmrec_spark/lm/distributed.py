"""Several processes that train one model together, as torchrun starts them; or one process alone.

Each process computes its share of a step's rows. Losses are divided by the counts of the whole step, so the sum of
the processes' gradients is the gradient of the step, and all of them make the same update.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flmrec_spark.errors import EnvironmentFault

# While rank 0 learns factors or validates, the others wait for it; one that is lost is seen at once by its connection.
_PATIENCE = timedelta(days=7)
_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """Where a process stands among those of a training.

    Args:
      rank: 0 .. size - 1; rank 0 alone writes.
      per_node: processes that share this node's memory.
    """

    rank: int = 0
    size: int = 1
    per_node: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def writes(self) -> bool:
        return self.rank == 0

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by the sum over the processes; one that is missing counts as 0."""
        if self.size == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.flatten() for parameter in trained if parameter.grad is not None])
        self._sum(flat)
        at = 0
        for parameter in trained:
            parameter.grad = flat[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()

    def sum(self, value: float) -> float:
        """The sum of a number over the processes."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        self._sum(total)
        return float(total)

    def agreed(self, value: Any) -> Any:
        """What rank 0 says, in every process; all of them wait for it."""
        if self.size == 1:
            return value
        told = [value]
        with self._together():
            dist.broadcast_object_list(told, src=0)
        return told[0]

    def _sum(self, values: Tensor) -> None:
        with self._together():
            dist.all_reduce(values)

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as fault:
            raise EnvironmentFault(
                f"torchrun: process {self.rank} of {self.size} lost another one, expected all to live until the end; "
                f"the same command goes on from the last resume point: {' '.join(str(fault).split())[:200]}"
            ) from fault


@contextmanager
def joined() -> Iterator[World]:
    """The world that torchrun's variables describe, gloo on CPUs and nccl on GPUs; alone without them.

    Raises:
      EnvironmentFault: a variable of torchrun is missing, or there are more processes than GPUs.
    """
    has_gpu = torch.cuda.is_available()
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=torch.device("cuda" if has_gpu else "cpu"))
        return
    if missing := [name for name in _VARIABLES if name not in os.environ]:
        raise EnvironmentFault(f"WORLD_SIZE: got {size} without {', '.join(missing)}, expected torchrun to set them")
    local = int(os.environ["LOCAL_RANK"])
    if has_gpu and local >= torch.cuda.device_count():
        raise EnvironmentFault(f"torchrun: got process {local} on a node of {torch.cuda.device_count()} GPUs")
    device = torch.device("cuda", local) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo", timeout=_PATIENCE)
    try:
        per_node = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        yield World(dist.get_rank(), dist.get_world_size(), per_node, device)
    finally:
        dist.destroy_process_group()
