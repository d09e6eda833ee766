"""A layer that normalises after each residual, as BERT's kind of encoder has it: its parts, and its kernel's form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class PostNorm:
    """A layer's parts: behind its attention norm(residual + out(x)), and the same around outer(gelu(inner(x)))."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    out: nn.Linear
    first: nn.LayerNorm
    inner: nn.Linear
    outer: nn.Linear
    second: nn.LayerNorm


class LayerKernel(Protocol):
    """Such a layer by the kernel in C (`lm.fused`). Hidden states are float32, attention's bf16 but in fp32."""

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """hidden (.., D) -> scaled query, key and value, each (.., H * E)."""
        ...

    def finish(self, residual: Tensor, attended: Tensor, *, feed_forward: bool) -> Tensor:
        """As `Family.finish`."""
        ...
