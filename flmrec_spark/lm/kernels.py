"""Dense layers for inference on a CPU: oneDNN's with weights laid out once, where that is faster than torch's own.

torch multiplies float32 with the vendor's BLAS, which on some CPUs leaves half of the vector units idle; oneDNN's
product, which torch carries for its compiler, does not. Which one is faster is measured, never looked up.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

_SHAPE = (512, 384, 1536)  # rows, inner, columns: a feed-forward of a small model
_WORTH = 1.05
_SECONDS = 0.05


class PackedLinear(nn.Module):
    """`nn.Linear` for inference: the weight in oneDNN's own layout, so it is not laid out anew at each call."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous())
        self.bias = None if linear.bias is None else linear.bias.detach().clone()

    def forward(self, states: Tensor) -> Tensor:
        """(.., in_features) -> (.., out_features), the dtype of the weight."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            states.contiguous(), self.weight, self.bias, "none", [], ""
        )
        return product


def pack_linears(module: nn.Module) -> None:
    """Replaces every `nn.Linear` below the module, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child))


def is_faster_packed(dtype: torch.dtype) -> bool:
    """Whether packed layers are worth it on this CPU with the threads that torch has now: measured in 0.1 s."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    rows, inner, columns = _SHAPE
    plain = nn.Linear(inner, columns, dtype=dtype).requires_grad_(False)
    states = torch.ones(rows, inner, dtype=dtype)
    with torch.inference_mode():
        packed = PackedLinear(plain)
        return _fastest(plain, states) > _WORTH * _fastest(packed, states)


def _fastest(layer: nn.Module, states: Tensor) -> float:
    layer(states)
    best, spent = float("inf"), 0.0
    while spent < _SECONDS:
        started = time.perf_counter()
        layer(states)
        took = time.perf_counter() - started
        best, spent = min(best, took), spent + took
    return best
