"""History augmentation: what it may change, and that it is a function of its seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flmrec_spark.config import AugmentConfig
from flmrec_spark.lm.augmentation import augmented
from flmrec_spark.lm.batches import make_step
from flmrec_spark.lm.loading import Data, load_data
from flmrec_spark.lm.prepared import read_tables
from flmrec_spark.lm.segments import Interaction
from tests.prepared import tiny_config

Share = st.sampled_from([0.0, 0.3, 0.9])


def history(n: int) -> list[Interaction]:
    return [Interaction({"title": str(place)}, is_liked=place % 2 == 0) for place in range(n)]


def places(entries: list[Interaction]) -> list[int]:
    return [int(str(entry.item["title"])) for entry in entries]


def drawn(n: int, seed: int, **shares: float) -> list[int]:
    return places(augmented(history(n), AugmentConfig(**shares), np.random.default_rng(seed)))


@given(n=st.integers(0, 12), seed=st.integers(0, 999), drop=Share, crop=Share, reorder=Share)
def test_entries_are_left_out_and_moved_but_never_made(n, seed, drop, crop, reorder):
    got = drawn(n, seed, drop=drop, crop=crop, reorder=reorder)
    assert len(set(got)) == len(got)
    assert set(got) <= set(range(n))
    assert bool(got) == (n > 0)
    assert got == drawn(n, seed, drop=drop, crop=crop, reorder=reorder)
    if drop == crop == reorder == 0.0:
        assert got == list(range(n))


@given(n=st.integers(1, 12), seed=st.integers(0, 999))
def test_each_way_does_what_it_says(n, seed):
    cropped, dropped, moved = drawn(n, seed, crop=1.0), drawn(n, seed, drop=0.5), drawn(n, seed, reorder=1.0)
    assert cropped == list(range(cropped[0], cropped[-1] + 1))
    assert len(cropped) >= n // 2
    assert dropped == sorted(dropped)
    assert sorted(moved) == list(range(n))


def test_the_share_that_is_dropped_is_the_share_that_was_asked_for():
    kept = sum(len(drawn(10, seed, drop=0.3)) for seed in range(300))
    assert kept / 3000 == pytest.approx(0.7, abs=0.03)


@pytest.fixture
def data(world) -> Data:
    config = tiny_config(world, finetune={"augment": {"drop": 0.5}})
    return load_data(config, read_tables(config.tables.root))


def prefixes(data: Data, number: int, **shares: float) -> list[list[int]]:
    rows, settings = np.arange(20), AugmentConfig(**shares)
    step = make_step(
        rows, data.train, data.segmenter, data.negatives, n_negatives=0, seed=1, number=number, augment=settings
    )
    return [ids[:length].tolist() for ids, length in zip(step.prefixes.ids, step.prefixes.lengths, strict=True)]


def test_a_step_is_augmented_by_its_number_and_only_in_the_history(data):
    plain, first = data.train.prefixes[:20], prefixes(data, 5, drop=0.5)
    assert prefixes(data, 5) == plain
    assert prefixes(data, 5, drop=0.5) == first
    assert prefixes(data, 6, drop=0.5) != first
    assert sum(map(len, first)) < sum(map(len, plain))
    for row, own in enumerate(first):
        source = data.train.sources[row]
        if len(source.history) == 0:
            assert own == plain[row]


def test_no_source_is_kept_where_nothing_asks_for_it(world):
    config = tiny_config(world)
    assert load_data(config, read_tables(config.tables.root)).train.sources == []
