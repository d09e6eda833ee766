"""Blocks that halve when an allocation is refused, and the memory that a process tells of itself."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
import torch

from flmrec_spark.errors import EnvironmentFault
from flmrec_spark.lm import memory
from flmrec_spark.lm.memory import Blocks
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.token_block import TokenBlock
from tests.tiny import tiny_bert

FAULTS = (
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4000 bytes."),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault)[:20])
def test_a_block_that_does_not_fit_is_halved_and_so_are_those_behind_it(fault: Exception) -> None:
    done: list[tuple[int, int]] = []

    def work(start: int, stop: int) -> None:
        if stop - start > 150:
            raise fault
        done.append((start, stop))

    blocks = Blocks(512)
    blocks.run(700, work)
    assert done == [(0, 128), (128, 256), (256, 384), (384, 512), (512, 640), (640, 700)]
    blocks.run(130, work)
    assert done[6:] == [(0, 96), (96, 130)]  # no end of 2 rows


def test_a_range_shorter_than_a_block_is_halved_by_its_own_length() -> None:
    done: list[tuple[int, int]] = []

    def work(start: int, stop: int) -> None:
        if stop - start > 64:
            raise MemoryError
        done.append((start, stop))

    Blocks(8192).run(150, work)
    assert done == [(0, 64), (64, 96), (96, 150)]


def test_a_memory_too_small_for_anything_is_told() -> None:
    def work(start: int, stop: int) -> None:
        raise MemoryError

    with pytest.raises(EnvironmentFault, match="memory: got an allocation refused for a block of 32 items"):
        Blocks(512).run(700, work)


def test_another_fault_is_not_taken_for_a_lack_of_memory() -> None:
    def work(start: int, stop: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Blocks(512).run(3, work)


def catalog(n_items: int) -> TokenBlock:
    random = np.random.default_rng(3)
    lengths = np.where(
        np.arange(n_items) < n_items // 2, random.integers(2, 4, n_items), random.integers(2, 7, n_items)
    )
    return TokenBlock(random.integers(5, 60, (n_items, 6)).astype(np.int32), lengths.astype(np.int32))


def refusing(call: Callable[..., object], count: Callable[..., int], limit: int) -> Callable[..., object]:
    """The call, refused as an allocator would where it is asked for more than `limit` rows."""

    def wrapped(*given: object, **named: object) -> object:
        if count(*given) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return call(*given, **named)

    return wrapped


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("join", "join_layer"), [("layer", 0), ("layer", 2), ("layer", 3), ("attention", 2), ("full", 2)]
)
def test_scores_keep_their_bits_when_the_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch, join: str, join_layer: int, packed: bool
) -> None:
    model = SegmentedModel(tiny_bert(), join=join, join_layer=join_layer, item_position=20, item_tokens=8).eval()
    model.rating.item_weight.data.normal_(generator=torch.Generator().manual_seed(7))
    chosen = np.arange(0, 1200, 3)
    unbroken = Scorer(model, catalog(1200), packed=packed)
    expected = [unbroken.logits([5, 6, 7]), unbroken.logits([5, 6, 7], items=chosen)]
    scorer = Scorer(model, catalog(1200), packed=packed)
    refused = refusing(scorer.attention.attend, lambda items, user, block: block.stop - block.start, 100)
    monkeypatch.setattr(scorer.attention, "attend", refused)
    joined = refusing(scorer.model.joined, lambda users, items, grid: grid.shape[1], 70)
    monkeypatch.setattr(scorer.model, "joined", joined)
    monkeypatch.setattr(scorer.model, "pair", refusing(scorer.model.pair, lambda user, item: len(user.ids), 70))
    np.testing.assert_array_equal(scorer.logits([5, 6, 7]), expected[0])
    np.testing.assert_array_equal(scorer.logits([5, 6, 7], items=chosen), expected[1])
    if join_layer == 3:
        return  # two towers: no call in which this could refuse
    blocks = [scorer._pair_blocks]
    if scorer.one is not None:  # not for whole pairs
        blocks += [scorer.one.last_blocks, scorer.one.early_blocks]
    assert min(each.size for each in blocks) in (32, 64)  # it was refused


def test_item_states_keep_their_bits_when_the_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SegmentedModel(tiny_bert(), join="layer", join_layer=2, item_position=20, item_tokens=8).eval()
    scorer = Scorer(model, catalog(300))
    expected = scorer.encode(catalog(300))
    encode = refusing(scorer.model.encode_items, lambda ids, lengths, factors: len(ids), 50)
    monkeypatch.setattr(scorer.model, "encode_items", encode)
    for got, whole in zip(scorer.encode(catalog(300)).parts(), expected.parts(), strict=True):
        np.testing.assert_array_equal(got.numpy(), whole.numpy())


def test_a_process_tells_its_own_peak_by_host_and_number() -> None:
    (name, before), *rest = memory.peak_mb().items()
    assert (name.rpartition(":")[2], rest) == (str(os.getpid()), [])
    held = np.ones((before + 50) << 20, dtype=np.uint8)  # more than was ever there
    assert before + 50 <= memory.peak_mb()[name] <= 2 * before + 200
    del held
    assert memory.peak_mb(2**22 + 1) == {}
    assert list(memory.peaks_up_to("no such command")) == [name]
    assert len(memory.peaks_up_to(memory._command(os.getppid()))) == 2
