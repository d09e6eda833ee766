"""The number format that this machine multiplies fastest, found by a short measurement and never by a list of names."""

from __future__ import annotations

import time

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}  # int8: dense layers alone
_SHAPE = (512, 384, 1536)  # rows, inner, columns: a feed-forward of a small model
_WORTH = 1.3  # bf16 must be this much faster, or its rounding buys nothing


def gemm_flops(dtype: torch.dtype, *, device: str = "cpu", seconds: float = 0.1) -> float:
    """Floating-point operations per second of one matrix product, with the threads that torch has now."""
    rows, inner, columns = _SHAPE if device == "cpu" else (8192, 8192, 8192)
    left = torch.ones(rows, inner, dtype=dtype, device=device)
    right = torch.ones(columns, inner, dtype=dtype, device=device)
    best, spent = float("inf"), 0.0
    torch.nn.functional.linear(left, right)
    while spent < seconds:
        started = time.perf_counter()
        product = torch.nn.functional.linear(left, right)
        if device != "cpu":
            product[0, 0].item()  # waits for the device
        took = time.perf_counter() - started
        best, spent = min(best, took), spent + took
    return 2.0 * rows * inner * columns / best


def resolve(precision: str, *, device: str = "cpu") -> str:
    """`auto` -> bf16 where its product is clearly faster than float32's, else fp32; others as they are."""
    if precision != "auto":
        return precision
    faster = gemm_flops(torch.bfloat16, device=device) / gemm_flops(torch.float32, device=device)
    return "bf16" if faster >= _WORTH else "fp32"
