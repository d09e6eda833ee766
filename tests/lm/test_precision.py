"""The choice of a number format: by what is measured, and only when it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flmrec_spark.lm import native, precision


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


def test_every_format_is_measured_also_where_onednn_refuses_it(monkeypatch):
    """A CPU without AVX-512: torch multiplies bfloat16 by itself there, and pairs of bytes would overflow."""
    kernel = native.load(native.build())
    assert set(precision.rates("cpu", kernel, seconds=1e-3)) >= {"fp32", "bf16"}
    monkeypatch.setattr(precision, "can_pack", lambda dtype=torch.float32: dtype != torch.bfloat16)
    monkeypatch.setattr(native, "cpu_flags", frozenset)
    monkeypatch.setattr(kernel, "zero", 128)
    found = precision.rates("cpu", kernel, seconds=1e-3)
    assert found.keys() == {"fp32", "bf16"}
    assert min(found.values()) > 0


SCORES = np.array([[0.9, 0.8, 0.7, 0.1], [0.2, 0.4, 0.6, 0.8]])


def test_equal_scores_agree_wholly():
    found = precision.agreement(SCORES, SCORES, 2)
    assert (found.overlap, found.loss, found.loss_high, found.is_good) == (1.0, 0.0, 0.0, True)


def test_what_a_list_loses_is_counted_in_likes():
    rounded = np.array([[0.9, 0.6, 0.7, 0.1], SCORES[1]])  # the first user gets 0.7 instead of 0.8
    found = precision.agreement(SCORES, rounded, 2)
    lost = 0.1 / 1.7
    assert found.overlap == 0.75
    assert found.loss == pytest.approx(lost / 2)
    assert found.loss_high == pytest.approx(lost / 2 + 1.645 * np.std([lost, 0], ddof=1) / np.sqrt(2))
    assert not found.is_good


def test_items_that_are_as_good_as_equal_may_change_places():
    exact = np.tile([0.9, 0.8, 0.7, 0.6, 0.5, 0.4999], (32, 1))
    found = precision.agreement(exact, np.tile([0.9, 0.8, 0.7, 0.6, 0.5, 0.5001], (32, 1)), 5)
    assert found.overlap == 0.8
    assert found.is_good


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_never_good(value):
    assert not precision.agreement(SCORES, np.where(SCORES > 0.7, value, SCORES), 2).is_good


def test_formats_are_looked_at_from_the_fastest_on_if_they_are_worth_it():
    assert list(precision.faster({"fp32": 100, "bf16": 129})) == []
    assert list(precision.faster({"fp32": 100, "bf16": 200, "int8": 400, "fp8": 90})) == ["int8", "bf16"]
