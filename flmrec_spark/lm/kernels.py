"""Dense layers for inference on a CPU: oneDNN's product, with the weights laid out once.

torch multiplies float32 with the vendor's BLAS, which on some CPUs leaves half of the vector units idle; oneDNN's
product, which torch carries for its compiler, does not. `benchmarks/scoring.py` shows what it gives on a machine.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from flmrec_spark.lm.native import Kernel
from flmrec_spark.lm.precision import can_pack, int8_product

_LANES = 16


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


class QuantizedLinear(nn.Module):
    """`nn.Linear` for inference in int8: weights by output channel, states by row, sums in int32.

    Symmetric, by the largest value (Jacob et al. 2018, section 3); the states in unsigned bytes with `Kernel.zero` for
    zero, as the CPU's instruction wants them. In and out are float32.
    """

    def __init__(self, linear: nn.Linear, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        self.scale = weight.abs().amax(1).clamp(min=1e-30) / 127.0  # (out,)
        rounded = (weight / self.scale[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.bias = torch.zeros(self.out_features) if linear.bias is None else linear.bias.detach().float().clone()

    def forward(self, states: Tensor) -> Tensor:
        """(.., in_features) -> (.., out_features), float32."""
        rows, scales = self.kernel.quantize(states.reshape(-1, self.in_features))
        product = int8_product(rows, self.weight, self.scale, zero=self.kernel.zero)
        return self.kernel.rescale(product, scales, self.bias).view(*states.shape[:-1], self.out_features)


def quantize_linears(module: nn.Module, kernel: Kernel) -> int:
    """Replaces every dense layer below the module whose sides the kernel's vectors divide, in place; says how many."""
    n_replaced = 0
    for parent, name, linear in _dense(module):
        if _can_quantize(linear):
            setattr(parent, name, QuantizedLinear(linear, kernel))
            n_replaced += 1
    return n_replaced


def can_quantize(module: nn.Module) -> bool:
    """Whether there is anything for `quantize_linears`."""
    return any(_can_quantize(linear) for _, _, linear in _dense(module))


def pack_linears(module: nn.Module) -> None:
    """Replaces every dense layer below the module whose dtype oneDNN multiplies here, in place."""
    for parent, name, linear in _dense(module):
        if can_pack(linear.weight.dtype):
            setattr(parent, name, PackedLinear(linear))


def _dense(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """(parent, name in it, layer) of every dense layer; GPT-2's, which keep the transposed weight, as linear ones."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                yield parent, name, child
            elif type(child) is Conv1D:
                n_in, n_out = child.weight.shape
                linear = nn.Linear(n_in, n_out, device="meta")
                linear.weight, linear.bias = nn.Parameter(child.weight.detach().T.contiguous()), child.bias
                yield parent, name, linear


def _can_quantize(linear: nn.Linear) -> bool:
    return linear.in_features % _LANES == linear.out_features % _LANES == 0
