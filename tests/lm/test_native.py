"""The kernel in C against the same arithmetic in torch, for every instruction set that this CPU runs."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flmrec_spark.lm import native
from flmrec_spark.lm.kernels import QuantizedLinear, quantize_linears
from flmrec_spark.lm.native import Built

pytestmark = pytest.mark.skipif(native.build() is None, reason="no C compiler, or a CPU that the kernel does not know")

_HERE = {level: needs for level, (needs, _) in native.LEVELS.items() if needs <= native.cpu_flags()}


@pytest.fixture(scope="module", params=list(_HERE))
def kernel(request, tmp_path_factory):
    file = tmp_path_factory.mktemp("native") / "kernel.so"
    command = [*native._compiler(), *native._COMMON, *native.LEVELS[request.param][1], "-o", str(file)]
    subprocess.run([*command, "-Wall", "-Wextra", "-Wno-psabi", *native._SOURCES], check=True, capture_output=True)
    return native.load(Built(request.param, file))


def attended(query, own, own_lse, keys, values):
    """The definition: one softmax over the user's keys and the own part."""
    logits = torch.cat([query @ keys.transpose(1, 2), own_lse[..., None]], dim=-1)
    weights = logits.softmax(-1)
    return (weights[..., :-1] @ values + weights[..., -1:] * own).transpose(0, 1).flatten(1)


def drawn(n_heads, n_items, n_keys, width, *, dtype=torch.float32, seed=1):
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=random).to(dtype)

    query = normal(n_heads, n_items, width) / math.sqrt(width)
    keys, values = normal(n_heads, n_keys, width), normal(n_heads, n_keys, width)
    return query, normal(n_heads, n_items, width), normal(n_heads, n_items).float(), keys, values


def run(kernel, query, own, own_lse, keys, values, block=None):
    user = kernel.pack_user(keys, values)
    block = block or slice(0, query.shape[1])
    return kernel.attend(kernel.pack_query(query), own, kernel.pack_lse(own_lse), user, block)


@pytest.mark.parametrize("shape", [(1, 1, 1, 16), (2, 31, 7, 16), (3, 33, 8, 32), (12, 100, 101, 32), (2, 70, 300, 64)])
def test_the_kernel_equals_the_softmax_in_torch(kernel, shape):
    given_ = drawn(*shape)
    torch.testing.assert_close(run(kernel, *given_), attended(*given_), rtol=1e-5, atol=2e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 80), st.integers(1, 40), st.sampled_from([16, 48]), st.integers(0, 99))
def test_any_shape_equals_torch(n_heads, n_items, n_keys, width, seed):
    given_ = drawn(n_heads, n_items, n_keys, width, seed=seed)
    kernel = native.load(native.build())
    torch.testing.assert_close(run(kernel, *given_), attended(*given_), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("shape", [(2, 31, 7, 16), (12, 64, 100, 32)])
def test_bf16_differs_from_float32_by_its_rounding_alone(kernel, shape):
    if not kernel.fits(torch.bfloat16, shape[-1]):
        pytest.skip("no bf16 instructions at this level")
    given_ = drawn(*shape, dtype=torch.bfloat16)
    exact = attended(*(tensor.float() for tensor in given_))
    torch.testing.assert_close(run(kernel, *given_).float(), exact, rtol=2e-2, atol=1e-2)


def test_a_block_of_items_equals_those_rows_of_all(kernel):
    given_ = drawn(2, 3 * kernel.tile + 5, 9, 16)
    whole = run(kernel, *given_)
    for start, stop in ((kernel.tile, 2 * kernel.tile), (2 * kernel.tile, 3 * kernel.tile + 5)):
        assert torch.equal(run(kernel, *given_, block=slice(start, stop)), whole[start:stop])


def test_an_item_without_a_part_of_its_own_attends_to_the_user_alone(kernel):
    query, own, own_lse, keys, values = drawn(2, 5, 9, 16)
    alone = (query @ keys.transpose(1, 2)).softmax(-1) @ values
    found = run(kernel, query, torch.zeros_like(own), torch.full_like(own_lse, -math.inf), keys, values)
    torch.testing.assert_close(found, alone.transpose(0, 1).flatten(1), rtol=1e-5, atol=2e-6)


def segments_in_torch(query, key, value, lengths, user, is_causal):
    """The definition: one masked softmax over the user's keys and the segment's own."""
    n_segments, n_tokens, n_heads, _ = query.shape
    heads = [states.float().repeat_interleave(n_heads // states.shape[2], 2).transpose(1, 2) for states in (key, value)]
    places = torch.arange(n_tokens)
    sees = (places < lengths[:, None])[:, None, None, :].expand(-1, 1, n_tokens, -1)
    if is_causal:
        sees = sees & (places <= places[:, None])
    if user is not None:
        shared = [states.float().repeat_interleave(n_heads // len(states), 0)[None] for states in user]
        heads = [
            torch.cat([more.expand(n_segments, -1, -1, -1), own], 2) for more, own in zip(shared, heads, strict=True)
        ]
        sees = torch.cat([sees.new_ones(n_segments, 1, n_tokens, user[0].shape[1]), sees], -1)
    found = nn.functional.scaled_dot_product_attention(
        query.float().transpose(1, 2), heads[0], heads[1], attn_mask=sees, scale=1.0
    )
    return found.transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (1, 100, 3, 3), (5, 12, 4, 2), (7, 3, 4, 1), (3, 33, 2, 2), (2, 32, 2, 1)]
)
@pytest.mark.parametrize("n_user", [0, 1, 9])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 3e-6), (torch.bfloat16, 3e-2)])
def test_segments_attend_to_themselves_and_to_the_user_as_in_torch(kernel, shape, n_user, is_causal, dtype, close):
    if not kernel.fits_self(dtype, 32):
        pytest.skip("no bf16 instructions at this level")
    n_segments, n_tokens, n_heads, n_kept = shape
    random = torch.Generator().manual_seed(n_tokens)

    def normal(*size):
        return torch.randn(size, generator=random).to(dtype)

    query = normal(n_segments, n_tokens, n_heads, 32) / 8
    key, value = normal(n_segments, n_tokens, n_kept, 32), normal(n_segments, n_tokens, n_kept, 32)
    user = (normal(n_kept, n_user, 32), normal(n_kept, n_user, 32)) if n_user else None
    lengths = torch.randint(1, n_tokens + 1, (n_segments,), generator=random)
    expected = segments_in_torch(query, key, value, lengths, user, is_causal)
    packed = None if user is None else kernel.pack_user(*user)
    found = kernel.attend_segments(query, key, value, lengths, user=packed, is_causal=is_causal)
    torch.testing.assert_close(found.float(), expected, rtol=close, atol=close)


def test_large_logits_neither_overflow_nor_vanish(kernel):
    query, own, own_lse, keys, values = drawn(1, 3, 4, 16)
    found = run(kernel, query * 200, own, own_lse, keys, values)
    torch.testing.assert_close(found, attended(query * 200, own, own_lse, keys, values), rtol=1e-4, atol=1e-5)


def test_a_width_that_vectors_do_not_divide_does_not_fit(kernel):
    assert kernel.fits(torch.float32, 32)
    assert not kernel.fits(torch.float32, 24)
    assert not kernel.fits(torch.float64, 32)
    assert kernel.fits_self(torch.float32, 16)
    assert not kernel.fits_self(torch.bfloat16, 16)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.sampled_from([16, 48]), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_bytes_are_within_half_a_step_of_what_they_stand_for(n_rows, n, size, seed):
    kernel = native.load(native.build())
    states = torch.randn(n_rows, n, generator=torch.Generator().manual_seed(seed)) * size
    quantized, scales = kernel.quantize(states)
    torch.testing.assert_close(scales, states.abs().amax(1) / (kernel.zero - 1), rtol=1e-6, atol=0)
    error = (quantized.float() - kernel.zero) * scales[:, None] - states
    assert (error.abs() <= scales[:, None] * 0.5001).all()


def test_a_row_of_zeros_stays_zero(kernel):
    quantized, scales = kernel.quantize(torch.zeros(2, 32))
    assert (quantized == kernel.zero).all()
    assert torch.isfinite(scales).all()


@pytest.mark.parametrize("with_bias", [True, False])
@torch.inference_mode()
def test_an_int8_layer_equals_the_product_of_the_rounded_numbers(kernel, with_bias):
    torch.manual_seed(1)
    plain = nn.Linear(48, 32, bias=with_bias)
    states = torch.randn(2, 5, 48)
    step = plain.weight.abs().amax(1) / 127
    weight = (plain.weight / step[:, None]).round() * step[:, None]
    sizes = states.abs().amax(-1, keepdim=True) / (kernel.zero - 1)
    expected = nn.functional.linear((states / sizes).round() * sizes, weight, plain.bias)
    torch.testing.assert_close(QuantizedLinear(plain, kernel)(states), expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_the_largest_bytes_do_not_overflow(kernel):
    plain = nn.Linear(64, 16, bias=False)
    plain.weight.data.fill_(1.0)
    states = torch.ones(2, 64) * torch.tensor([[1.0], [-1.0]])
    torch.testing.assert_close(QuantizedLinear(plain, kernel)(states), plain(states), rtol=1e-5, atol=0)


def test_layers_whose_sides_no_vector_divides_are_left_in_float32(kernel):
    model = nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 7))
    quantize_linears(model, kernel)
    assert [type(layer) for layer in model] == [QuantizedLinear, nn.Linear]


def test_without_a_compiler_there_is_no_kernel(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert native._build.__wrapped__() is None
    assert native.load(None) is None


def test_a_compiler_that_fails_is_none(monkeypatch):
    monkeypatch.setenv("CC", "false")
    assert native._build.__wrapped__() is None


def test_a_compiler_that_is_too_old_for_the_best_level_builds_the_next(monkeypatch, tmp_path):
    first, *others = native.cpu_levels()
    newest = native.LEVELS[first][1][-1]
    compiler = tmp_path / "cc"
    real = native._compiler()[0]
    compiler.write_text(f'#!/bin/sh\nfor each; do [ "$each" = {newest} ] && exit 1; done\nexec {real} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    built = native._build.__wrapped__()
    assert built.level == next(level for level in others if newest not in native.LEVELS[level][1])
    assert native.load(built) is not None


def test_a_library_for_another_cpu_is_not_loaded(monkeypatch):
    monkeypatch.setattr(native, "cpu_flags", lambda: frozenset({"sse4_2"}))
    assert native.cpu_levels() == []
    assert native.load(Built("x86-64-v4", Path("never-opened.so"))) is None


def test_a_library_that_may_not_run_where_it_lies_is_told_of_and_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    built = native.build()
    if native.load(built) is None:
        pytest.skip("no kernel here")

    def refused(name: str) -> None:
        raise OSError(f"{name}: failed to map segment from shared object")

    monkeypatch.setattr(native.ctypes, "CDLL", refused)
    assert native.load(built) is None
    assert "the kernel in C is not used, which makes scoring slower: " in caplog.text
