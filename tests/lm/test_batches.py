"""Steps of a training: every row once, negatives that nobody rated, and nothing but (seed, number) decides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flmrec_spark.lm.batches import Negatives, epoch_order, make_step
from flmrec_spark.lm.dataset import Examples
from flmrec_spark.lm.segments import Segmenter
from flmrec_spark.prompts import load_template
from tests.tiny import tiny_tokenizer

N_ITEMS = 10
SEGMENTER = Segmenter(tiny_tokenizer(), load_template("en"), user_tokens=20, item_tokens=8, history_length=2)


def negatives(
    *, power: float = 0.0, known: tuple[int, ...] = (), refused: tuple[int, ...] = (), n: int = 4
) -> Negatives:
    drawable = np.ones(N_ITEMS, dtype=bool)
    drawable[list(refused)] = False
    counts = np.arange(N_ITEMS, dtype=np.float32)
    places = np.array(sorted(known), dtype=np.int64)
    return Negatives.of(counts, power=power, known=places, drawable=drawable, n=n)


def examples(n_rows: int = 7) -> Examples:
    random = np.random.default_rng(5)
    targets = random.integers(0, N_ITEMS, (n_rows, 3))
    targets[1, 2] = -1
    prefixes = [[2, *[5] * int(length), 3] for length in random.integers(1, 9, n_rows)]
    labels = random.integers(0, 2, (n_rows, 3)).astype(np.float32)
    return Examples(
        prefixes,
        np.arange(n_rows) % 3,
        targets,
        labels,
        0,
        0,
        np.ones(n_rows, dtype=np.int64),
        np.zeros(n_rows, dtype=bool),
    )


@given(
    known=st.sets(st.integers(0, 3 * N_ITEMS - 1)),
    refused=st.sets(st.integers(0, N_ITEMS - 1), max_size=N_ITEMS - 1),
    n=st.integers(1, 15),
    power=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_negatives_are_neither_rated_nor_refused(known, refused, n, power, seed):
    users = np.array([0, 2, 1, 2])
    own = negatives(power=power, known=tuple(known), refused=tuple(refused))
    drawn = own.draw(users, n, np.random.default_rng(seed))
    assert drawn.shape == (4, n)
    for user, row in zip(users, drawn.tolist(), strict=True):
        chosen = [item for item in row if item >= 0]
        assert not {user * N_ITEMS + item for item in chosen} & known
        assert not set(chosen) & refused
    assert (drawn[1] == drawn[3]).all()


def test_a_user_who_has_rated_everything_has_no_negatives():
    own = negatives(known=tuple(range(N_ITEMS)))
    drawn = own.draw(np.array([0, 1]), 4, np.random.default_rng(1))
    assert (drawn[0] == -1).all()
    assert (drawn[1] >= 0).all()


def shares(power: float) -> np.ndarray:
    own, random = negatives(power=power), np.random.default_rng(1)
    drawn = np.concatenate([own.draw(np.array([0]), 1, random)[0] for _ in range(4000)])
    return np.bincount(drawn, minlength=N_ITEMS) / len(drawn)


def test_power_zero_draws_uniformly_and_power_one_by_popularity():
    np.testing.assert_allclose(shares(0.0), np.full(N_ITEMS, 0.1), atol=0.02)
    counts = np.maximum(np.arange(N_ITEMS), 1)  # an item without any counts as one
    np.testing.assert_allclose(shares(1.0), counts / counts.sum(), atol=0.02)


def test_the_log_of_the_share_is_zero_for_uniform_draws_and_the_share_itself_where_one_is_drawn():
    np.testing.assert_allclose(negatives().log_share, np.zeros(N_ITEMS), atol=1e-6)
    own = negatives(power=1.0, refused=(9,), n=1)
    assert own.log_share[9] == -np.inf
    np.testing.assert_allclose(own.log_share[3], np.log(3 / 37 * 9), rtol=0.2)  # 1 + 1 + 2 + ... + 8 = 37


@given(n_rows=st.integers(1, 80), per_step=st.integers(1, 9), seed=st.integers(0, 99), epoch=st.integers(0, 5))
def test_an_epoch_has_every_row_once_and_depends_on_seed_and_epoch_alone(n_rows, per_step, seed, epoch):
    lengths = np.random.default_rng(0).integers(1, 50, n_rows)
    order = epoch_order(lengths, per_step=per_step, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(order).tolist()) == list(range(n_rows))
    assert len(order) == -(-n_rows // per_step)
    assert max(map(len, order)) <= per_step
    np.random.seed(1)
    again = epoch_order(lengths, per_step=per_step, seed=seed, epoch=epoch)
    assert [rows.tolist() for rows in order] == [rows.tolist() for rows in again]


def test_epochs_and_seeds_have_orders_of_their_own():
    lengths = np.ones(50, dtype=np.int64)
    orders = [
        np.concatenate(epoch_order(lengths, per_step=4, seed=seed, epoch=epoch)).tolist()
        for seed, epoch in ((1, 0), (1, 1), (2, 0))
    ]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_rows_of_similar_length_go_together():
    lengths = np.arange(64)
    for rows in epoch_order(lengths, per_step=4, seed=1, epoch=0):
        assert np.ptp(lengths[rows]) == 3


def test_a_step_holds_targets_then_negatives_as_places_of_distinct_items():
    data, own = examples(), negatives()
    step = make_step(np.array([1, 4]), data, SEGMENTER, own, n_negatives=5, seed=1, number=3)
    assert step.items.shape == (2, 8)
    assert step.items[:, :3].tolist() == data.targets[[1, 4]].tolist()
    held = step.items >= 0
    np.testing.assert_array_equal(step.distinct[step.grid][held], step.items[held])
    assert step.is_observed.tolist() == (data.targets[[1, 4]] >= 0).tolist()
    assert (step.is_ranked <= (step.labels > 0.5)).all()
    assert step.prefixes.lengths.tolist() == [len(data.prefixes[1]), len(data.prefixes[4])]


def test_a_step_depends_on_its_number_and_the_seed():
    data, own = examples(), negatives()
    steps = [
        make_step(np.array([0, 1]), data, SEGMENTER, own, n_negatives=5, seed=seed, number=number).items.tolist()
        for seed, number in ((1, 3), (1, 3), (1, 4), (2, 3))
    ]
    assert steps[0] == steps[1]
    assert steps[0] != steps[2]
    assert steps[0] != steps[3]


def test_a_liked_target_is_not_ranked_where_there_is_no_negative():
    data = examples()
    data.labels[:] = 1.0
    own = negatives(known=tuple(range(N_ITEMS)))  # user 0 has rated everything
    step = make_step(np.array([0, 1]), data, SEGMENTER, own, n_negatives=4, seed=1, number=0)
    assert step.is_ranked.tolist() == [[False] * 3, (data.targets[1] >= 0).tolist()]


@pytest.mark.parametrize("n_parts", [1, 2, 3, 7, 20])
def test_the_parts_of_a_step_hold_its_rows(n_parts):
    data = examples()
    step = make_step(np.arange(7), data, SEGMENTER, negatives(), n_negatives=4, seed=1, number=0)
    parts = list(step.split(n_parts))
    assert len(parts) == min(n_parts, 7)
    np.testing.assert_array_equal(np.concatenate([part.items for part in parts]), step.items)
    np.testing.assert_array_equal(np.concatenate([part.users for part in parts]), step.users)
    np.testing.assert_array_equal(np.concatenate([part.labels for part in parts]), step.labels)
    assert sum(int(part.is_ranked.sum()) for part in parts) == int(step.is_ranked.sum())
    prefixes = [
        row[:length].tolist()
        for part in parts
        for row, length in zip(part.prefixes.ids, part.prefixes.lengths, strict=True)
    ]
    assert prefixes == data.prefixes


def test_logits_are_corrected_for_how_often_an_item_is_among_those_that_are_drawn():
    counts = np.array([400.0, 200.0, 100.0, 50.0, 20.0, 10.0, 5.0, 2.0, 1.0, 1.0], dtype=np.float32)
    drawable = np.arange(N_ITEMS) != 2
    own = Negatives.of(counts, power=1.0, known=np.zeros(0, dtype=np.int64), drawable=drawable, n=3)
    random = np.random.default_rng(7)
    among = np.mean([np.isin(np.arange(N_ITEMS), own.draw(np.array([0]), 3, random)) for _ in range(6_000)], axis=0)
    assert among[2] == 0 and own.log_share[2] == -np.inf
    told = np.exp(own.log_share[drawable]) * 3 / 9
    assert told.sum() == pytest.approx(3, abs=1e-5)
    assert told == pytest.approx(among[drawable], abs=0.06)
    once = 3 * counts[0] / counts[drawable].sum()  # what n times the share would say of the most popular
    assert once > 1.5 and told[0] < 1


@pytest.mark.parametrize("n", [9, 20])
def test_where_every_item_is_drawn_none_is_corrected(n):
    counts, drawable = np.arange(N_ITEMS, dtype=np.float32), np.arange(N_ITEMS) != 4
    own = Negatives.of(counts, power=1.0, known=np.zeros(0, dtype=np.int64), drawable=drawable, n=n)
    assert own.log_share[drawable].tolist() == [0.0] * 9
