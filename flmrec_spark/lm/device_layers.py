"""A layer that normalises after each residual (BERT's kind) on a GPU: cuBLAS's products with their bias, and Triton's
passes between them. `finish` moves each number of a state three times where the stock modules move it seven times.

Shapes: B users, T items, D hidden, H heads, E size of a head, V vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from flmrec_spark.lm import device_kernels
from flmrec_spark.lm.families.post_norm import PostNorm


class DeviceLayer:
    """One layer's weights; `families.post_norm.LayerKernel` in the dtype of the weights.

    Args:
      parts: on the device, in the dtype that is computed in.
      scale: of the query.
    """

    def __init__(self, parts: PostNorm, *, scale: float) -> None:
        self.parts = parts
        query = [part * scale for part in (parts.query.weight.float(), _bias(parts.query).float())]
        weights = [query[0].to(parts.key.weight.dtype), parts.key.weight, parts.value.weight]
        biases = [query[1].to(parts.key.weight.dtype), _bias(parts.key), _bias(parts.value)]
        self.weight, self.bias = torch.cat(weights).detach(), torch.cat(biases).detach()

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `LayerKernel.project`: three views of one product."""
        query, key, value = linear(hidden, self.weight, self.bias).chunk(3, dim=-1)
        return query, key, value

    def finish(self, residual: Tensor, attended: Tensor, *, feed_forward: bool) -> Tensor:
        """As `Family.finish`; a residual of fewer rows is that of every user."""
        joined = self._joined(residual, attended)
        return _normed(self.parts.second, self._fed(joined), joined) if feed_forward else joined

    def dots(self, residual: Tensor, attended: Tensor, vectors: Tensor, *, feed_forward: bool) -> Tensor:
        """Dot products float32 (V, B, T) of what `finish` gives with vectors float32 (B, V, D).

        Args:
          residual: (T, D) or (B, T, D).
          attended: (B, T, H * E).
        """
        if not feed_forward:
            norm = self.parts.first
            return device_kernels.norm_dots(self.parts.out(attended), residual, *_of(norm), vectors)
        joined = self._joined(residual, attended)
        return device_kernels.norm_dots(self._fed(joined), joined, *_of(self.parts.second), vectors)

    def _joined(self, residual: Tensor, attended: Tensor) -> Tensor:
        return _normed(self.parts.first, self.parts.out(attended), residual)

    def _fed(self, joined: Tensor) -> Tensor:
        return cast(Tensor, self.parts.outer(gelu(self.parts.inner(joined))))


def device_layers(family: Any) -> Sequence[DeviceLayer] | None:
    """All layers of a family that has such ones; None elsewhere."""
    parts = [cast(PostNorm | None, family.post_norm(layer)) for layer in range(family.n_layers)]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return [DeviceLayer(part, scale=family.head_size**-0.5) for part in known]


def _bias(part: nn.Linear) -> Tensor:
    return part.weight.new_zeros(len(part.weight)) if part.bias is None else part.bias


def _of(norm: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return norm.weight, norm.bias, norm.eps


def _normed(norm: nn.LayerNorm, states: Tensor, residual: Tensor) -> Tensor:
    return device_kernels.add_norm(states, residual, *_of(norm))
