"""Dense layers for inference on a CPU: oneDNN's product, with the weights laid out once.

torch multiplies float32 with the vendor's BLAS, which on some CPUs leaves half of the vector units idle; oneDNN's
product, which torch carries for its compiler, does not. `benchmarks/scoring.py` shows what it gives on a machine.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """`nn.Linear` for inference: the weight in oneDNN's own layout, so it is not laid out anew at each call."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous())
        self.bias = None if linear.bias is None else linear.bias.detach().clone()

    def forward(self, states: Tensor) -> Tensor:
        """(.., in_features) -> (.., out_features), the dtype of the weight."""
        rows = states.contiguous()
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
        return product


def pack_linears(module: nn.Module) -> None:
    """Replaces every `nn.Linear` below the module, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child))


def can_pack() -> bool:
    """Whether this build of torch has oneDNN."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
