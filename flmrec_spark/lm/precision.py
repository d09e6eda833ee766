"""The number format that this machine multiplies fastest, found by a short measurement and never by a list of names."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flmrec_spark.lm.native import Kernel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}  # of states; int8: products alone
_PRODUCTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
EXACT = "fp32"
_SHAPE = (512, 384, 1536)  # rows, inner, columns: a feed-forward of a small model
_WORTH = 1.3  # a format must be this much faster, or its rounding buys nothing
MIN_OVERLAP = 0.8  # mean share of the exact lists that the rounded ones must hold
MAX_LOSS = 0.005  # share of the lists' worth that may be lost, at the upper 95 % limit


def gemm_flops(dtype: torch.dtype, *, device: str = "cpu", seconds: float = 0.1) -> float:
    """Floating-point operations per second of one matrix product, with the threads that torch has now.

    One thread's product is timed by its CPU time, so that other work on the machine does not decide a precision.
    """
    clock = time.thread_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    rows, inner, columns = _SHAPE if device == "cpu" else (8192, 8192, 8192)
    multiply = _product(dtype, (rows, inner, columns), device)
    best, spent = float("inf"), 0.0
    multiply()
    while spent < seconds:
        started = clock()
        product = multiply()
        if device != "cpu":
            product[0, 0].item()  # waits for the device
        took = clock() - started
        best, spent = min(best, took), spent + took
    return 2.0 * rows * inner * columns / best


def _product(dtype: torch.dtype, shape: tuple[int, int, int], device: str) -> Callable[[], torch.Tensor]:
    rows, inner, columns = shape
    if dtype != torch.int8:
        left = torch.ones(rows, inner, dtype=dtype, device=device)
        right = torch.ones(columns, inner, dtype=dtype, device=device)
        if device == "cpu" and can_pack(dtype):
            packed = torch.ops.mkldnn._reorder_linear_weight(right)  # faster than torch's own on some CPUs
            return lambda: torch.ops.mkldnn._linear_pointwise(left, packed, None, "none", [], "")
        return lambda: torch.nn.functional.linear(left, right)
    states = torch.ones(rows, inner, dtype=torch.uint8)
    weight = torch.ops.onednn.qlinear_prepack(torch.ones(columns, inner, dtype=torch.int8), None)
    return lambda: int8_product(states, weight, torch.ones(columns), zero=0)


def can_pack(dtype: torch.dtype = torch.float32) -> bool:
    """Whether oneDNN, which torch carries, multiplies this dtype here: it refuses bfloat16 on a CPU without AVX-512."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def int8_product(states: torch.Tensor, weight: Any, scale: torch.Tensor, *, zero: int) -> torch.Tensor:
    """(states - zero) @ weight * scale in float32 by oneDNN, sums in int32.

    Args:
      states: uint8 (rows, inner).
      weight: int8 (columns, inner), as `torch.ops.onednn.qlinear_prepack` lays it out.
      scale: float32 (columns,).
    """
    none = torch.zeros(len(scale), dtype=torch.int32)
    product: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        states, 1.0, zero, weight, scale, none, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


def resolve(precision: str, *, device: str = "cpu") -> str:
    """`auto` -> the fastest format by its product alone, if that is clearly faster than float32's; others as they are.

    For training, whose validation shows what a format costs; scoring asks `stages.trial` too.
    """
    if precision != "auto":
        return precision
    return next(faster(rates(device)), EXACT)


def rates(device: str, kernel: Kernel | None = None, *, seconds: float = 0.1) -> dict[str, float]:
    """Operations per second of the product in each format; int8 where the kernel quantises for it."""
    has_bytes = kernel is not None and kernel.multiplies_bytes
    known = {name: dtype for name, dtype in _PRODUCTS.items() if dtype != torch.int8 or has_bytes}
    return {name: gemm_flops(dtype, device=device, seconds=seconds) for name, dtype in known.items()}


def faster(measured: Mapping[str, float]) -> Iterator[str]:
    """The formats worth a look, the fastest first."""
    for name in sorted(measured, key=lambda name: -measured[name]):
        if name != EXACT and measured[name] >= _WORTH * measured[EXACT]:
            yield name


@dataclass(frozen=True)
class Agreement:
    """How well lists in a format agree with the exact ones."""

    overlap: float  # mean share of an exact list that the rounded one holds
    loss: float  # mean share of an exact list's worth that is lost
    loss_high: float  # its upper 95 % limit, over users

    @property
    def is_good(self) -> bool:
        """Not significantly worse; false for scores that are no numbers."""
        return self.overlap >= MIN_OVERLAP and self.loss_high <= MAX_LOSS


def agreement(exact: Any, rounded: Any, n: int) -> Agreement:
    """Compares the n best of each user by scores exact and rounded, float64 (U, N) in [0, 1], U >= 1, n <= N.

    A list is worth the sum of its items' exact scores, which are probabilities. So items that change places because
    they are as good as equal cost nothing, whatever the overlap says.
    """
    if not np.isfinite(rounded).all():
        return Agreement(0.0, 1.0, 1.0)
    overlaps, losses = [], []
    for row, other in zip(exact, rounded, strict=True):
        best, chosen = (np.argsort(-scores, kind="stable")[:n] for scores in (row, other))
        overlaps.append(len(set(best.tolist()) & set(chosen.tolist())) / n)
        losses.append(1.0 - row[chosen].sum() / row[best].sum())
    error = float(np.std(losses, ddof=1)) / math.sqrt(len(losses)) if len(losses) > 1 else 0.0
    mean = float(np.mean(losses))
    return Agreement(float(np.mean(overlaps)), mean, mean + 1.645 * error)
