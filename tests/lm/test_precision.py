"""The choice of a number format: by what is measured, and only when it is asked for."""

from __future__ import annotations

import pytest
import torch

from flmrec_spark.lm import precision


@pytest.mark.parametrize(("gain", "chosen"), [(1.0, "fp32"), (1.29, "fp32"), (1.31, "bf16"), (8.0, "bf16")])
def test_auto_takes_bf16_only_where_it_is_clearly_faster(monkeypatch, gain, chosen):
    monkeypatch.setattr(
        precision, "gemm_flops", lambda dtype, *, device, seconds: 1e9 * (gain if dtype == torch.bfloat16 else 1.0)
    )
    assert precision.resolve("auto") == chosen


@pytest.mark.parametrize("told", ["fp32", "bf16"])
def test_a_format_that_is_told_is_taken_without_a_measurement(monkeypatch, told):
    monkeypatch.delattr(precision, "gemm_flops")
    assert precision.resolve(told) == told


def test_a_measurement_is_positive_and_short():
    assert precision.gemm_flops(torch.float32, seconds=0.001) > 1e6
