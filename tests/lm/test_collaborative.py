"""Collaborative factors: a taste and a score by hand, what is saved, and what they learn of a world with an answer."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flmrec_spark.config import CollaborativeConfig, FactorTrainingConfig
from flmrec_spark.errors import CheckpointError
from flmrec_spark.lm import collaborative, factor_files, factor_training
from flmrec_spark.lm.collaborative import LISTING, RATING, Collaborative, Factors
from flmrec_spark.lm.factor_validation import Question, measured
from flmrec_spark.lm.sequences import Sequences

HAND = Factors(
    history=np.array([[1, 0], [0, 1], [2, 2], [-1, 0], [0, -1], [0, 3]], dtype=np.float32),  # liked, then disliked
    target=np.array([[1, 1], [0, 2], [1, 0], [0, 0]], dtype=np.float32),
    offset=np.array([0.5, 0.0, -0.5, 0.25], dtype=np.float32),
    mix=np.array([3.0, 2.0], dtype=np.float32),
    recency=2.0,
)


def test_a_taste_weighs_every_entry_by_its_age_and_by_how_many_there_are():
    weight = [3 / math.sqrt(2) + 2 * math.exp(-age / 2) / math.sqrt(2) for age in (0, 1)]
    expected = weight[0] * np.array([2, 2]) + weight[1] * np.array([0, -1])  # item 2 liked, before it item 1 disliked
    np.testing.assert_allclose(HAND.taste(np.array([2, 1]), np.array([True, False])), expected, rtol=1e-6)
    assert HAND.taste(np.array([], dtype=np.intp), np.array([], dtype=bool)).tolist() == [0, 0]


def test_a_score_is_the_product_with_the_target_and_an_unknown_item_has_the_last_offset():
    taste = np.array([2.0, 3.0], dtype=np.float32)
    assert HAND.scores(taste, np.array([0, 1, 2, -1])).tolist() == [5.5, 6.0, 1.5, 0.25]


def both() -> Collaborative:
    other = Factors(HAND.history * 2, HAND.target * 2, HAND.offset * 2, HAND.mix, 5.0)
    return Collaborative(pa.array(["a", "b", "c"]), {LISTING: HAND, RATING: other}, 2)


def test_kinds_stand_behind_each_other_and_give_the_terms_of_each_alone():
    found = both()
    places = found.places(pa.array(["c", "nobody", "a"]))
    assert places.tolist() == [2, -1, 0]
    items = found.of_items(places)
    taste = found.taste(np.array([1, -1, 0, 2]), np.array([True, True, False, True]))  # the unknown one is no entry
    for kind, factors in found.factors.items():
        own = factors.taste(np.array([1, 0]), np.array([True, False]))  # the two newest that are known
        expected = factors.scores(own, places)
        if kind == LISTING:
            every = factors.scores(own, np.arange(factors.n_items)).astype(float)
            expected = expected - np.log(np.exp(every).sum())
        np.testing.assert_allclose(items.term(kind, taste), expected, rtol=1e-6)
        np.testing.assert_allclose(items.term(kind, taste, np.array([2])), expected[2:], rtol=1e-6)
    assert items.vectors[1].tolist() == [0, 0, 0, 0]
    assert items.term("nothing", taste) is None


def test_of_many_items_some_stand_for_all_in_a_sum(monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(1)
    target = np.append(random.normal(size=(9000, 2)), [[0, 0]], axis=0).astype(np.float32)
    many = Factors(
        np.zeros((18000, 2), dtype=np.float32), target, random.normal(size=9001).astype(np.float32), HAND.mix, 5.0
    )
    taste = np.array([0.5, -1.0], dtype=np.float32)
    exact = np.log(np.exp(many.scores(taste, np.arange(9000)).astype(float)).sum())
    assert many.log_total(taste) == pytest.approx(exact, abs=1e-5)
    monkeypatch.setattr(collaborative, "_SUMMED", 3000)
    assert 0 < abs(replace(many).log_total(taste) - exact) < 0.1


def test_what_is_saved_is_read_back_and_damage_is_named(tmp_path: Path):
    factor_files.save(tmp_path, both())
    found = factor_files.load(tmp_path)
    assert found is not None and found.item_ids.to_pylist() == ["a", "b", "c"]
    assert (found.history_length, list(found.factors)) == (2, [LISTING, RATING])
    for name, one in both().factors.items():
        for part in ("history", "target", "offset", "mix"):
            np.testing.assert_array_equal(getattr(found.factors[name], part), getattr(one, part))
        assert found.factors[name].recency == one.recency
    short = Collaborative(pa.array(["a", "b"]), both().factors, 2)
    factor_files.save(tmp_path, short)
    with pytest.raises(CheckpointError, match=r"factors.safetensors: listing: got factors of 3 items, expected 2"):
        factor_files.load(tmp_path)
    (tmp_path / "factors.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"factors.safetensors: not readable"):
        factor_files.load(tmp_path)
    assert factor_files.load(tmp_path / "elsewhere") is None


rows = st.lists(
    st.tuples(st.integers(0, 3), st.integers(-1, 4), st.booleans(), st.integers(1, 5)),
    max_size=30,
    unique_by=lambda row: (row[0], row[1], row[3]),  # the key of the table
)


@given(rows, st.integers(1, 6), st.integers(1, 4))
def test_a_history_is_the_newest_rows_strictly_before_the_moment(rows, moment, n):
    own = sequences(rows)
    for user in range(4):
        items, liked = own.before(user, moment, n)
        known = [row for row in rows if row[0] == user and row[1] >= 0 and row[3] < moment]
        newest = sorted(known, key=lambda row: (-row[3], row[1]))[:n]
        assert items.tolist() == [row[1] for row in newest]
        assert sorted(zip(items.tolist(), liked.tolist(), strict=True)) == sorted((row[1], row[2]) for row in newest)


@given(rows, st.integers(1, 4), st.integers(1, 5))
def test_every_interaction_is_a_target_once_and_its_history_lies_before_it(rows, n_targets, n_history):
    own = sequences(rows)
    parts = own.rows(n_targets)
    assert sum(int(stop - first) for _, _, first, stop in parts) == len(own.items)
    if not len(parts):
        return
    batch = own.batch(parts, n_history=n_history)
    ends = [*batch.starts.tolist()[1:], len(batch.rows)]
    for row, (start, end) in enumerate(zip(batch.starts.tolist(), ends, strict=True)):
        user, first = int(batch.users[row]), int(parts[row, 2])
        items, liked = own.before(user, own.moments[first], n_history)
        expected = np.where(liked, items, own.n_items + items)
        assert batch.rows[start:end].tolist() == expected.tolist()
        assert batch.ages[start:end].tolist() == list(range(end - start))
        asked = batch.targets[row][batch.targets[row] >= 0].tolist()
        assert asked == own.items[first : first + len(asked)].tolist()


def sequences(rows: list[tuple[int, int, bool, int]], n_users: int = 4, n_items: int = 5) -> Sequences:
    columns = [np.array(column) for column in zip(*rows, strict=True)] if rows else [np.zeros(0, dtype=int)] * 4
    return Sequences.of(*columns, n_users=n_users, n_items=n_items)


N_USERS, N_ITEMS, N_ROWS = 60, 24, 10


def checkerboard() -> tuple[Sequences, list[Question]]:
    """Even users like even items and dislike odd ones, odd users the other way round; two likes each are held out."""
    random = np.random.default_rng(1)
    rows, questions = [], []
    for user in range(N_USERS):
        items = random.permutation(N_ITEMS)
        known, rest = items[:N_ROWS], items[N_ROWS:]
        rows += [(user, item, item % 2 == user % 2, at) for at, item in enumerate(known, 1)]
        liked = known % 2 == user % 2
        asked = np.array([rest[rest % 2 == user % 2][0], rest[rest % 2 != user % 2][0]])
        questions.append(
            Question(user, known[::-1].copy(), liked[::-1].copy(), asked, np.array([True, False]), np.sort(known))
        )
    return sequences(rows, N_USERS, N_ITEMS), questions


def learned(objective: str, **ways: object) -> tuple[Factors, dict[str, float]]:
    own, questions = checkerboard()
    return factor_training.fit(
        own,
        questions,
        objective=objective,
        is_drawable=np.ones(N_ITEMS, dtype=bool),
        model=CollaborativeConfig(dimension=8),
        training=FactorTrainingConfig(
            epochs=12, rows_per_step=32, learning_rate=0.02, weight_decay=0.1, dropout=0.0, history_dropout=0.0
        ),
        seed=1,
        device=torch.device("cpu"),
        **ways,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("objective", [RATING, LISTING])
def test_they_learn_who_likes_what_in_a_checkerboard_world(objective: str):
    found, told = learned(objective)
    own, questions = checkerboard()
    assert told["uauc" if objective == RATING else "ndcg"] > (0.95 if objective == RATING else 0.3)
    for user, sign in ((0, 1), (1, -1)):
        scores = found.scores(found.taste(*own.before(user, 99, 99)), np.arange(N_ITEMS))
        spread = scores[::2].std() + scores[1::2].std()  # the epoch that wins may be an early one, of small scores
        assert sign * (scores[::2].mean() - scores[1::2].mean()) > max(0.3, 2 * spread)
    assert measured(found, questions, objective=objective, allowed=np.ones(N_ITEMS, dtype=bool)) > 0.3


def test_the_same_seed_gives_the_same_factors_and_another_start_goes_on():
    first, again = learned(RATING)[0], learned(RATING)[0]
    np.testing.assert_array_equal(first.target, again.target)
    places = np.array([*range(N_ITEMS - 1), -1])
    kept, _ = learned(RATING, start=(first, places), epochs=0)
    np.testing.assert_array_equal(kept.target[: N_ITEMS - 1], first.target[: N_ITEMS - 1])
    np.testing.assert_array_equal(kept.history[: N_ITEMS - 1], first.history[: N_ITEMS - 1])
    np.testing.assert_allclose(kept.offset[: N_ITEMS - 1], first.offset[: N_ITEMS - 1], atol=1e-6)
    assert np.abs(kept.target[N_ITEMS - 1] - first.target[N_ITEMS - 1]).max() > 0  # a new item begins anew


def test_an_item_that_no_list_may_hold_is_neither_rival_nor_target(monkeypatch: pytest.MonkeyPatch):
    own, _ = checkerboard()
    is_drawable = np.arange(N_ITEMS) < 20
    module = factor_training._Module(
        own, LISTING, is_drawable, CollaborativeConfig(dimension=4), FactorTrainingConfig(dropout=0.0)
    )
    batch = own.batch(own.rows(4)[:8], n_history=10)
    assert (batch.labels[batch.targets >= 20] > 0.5).any()  # liked once: to like it more would have no end
    loss = module.loss(batch, np.random.default_rng(1))
    assert loss > 0
    loss.backward()
    assert module.offset.grad is not None and not module.offset.grad[20:].any()
    assert module.offset.grad[:20].all()
    monkeypatch.setattr(factor_training, "_DRAWN", 10)  # a draw stands for all of them
    with torch.no_grad():
        losses = [float(module.eval().loss(batch, np.random.default_rng(seed))) for seed in range(300)]
        monkeypatch.setattr(factor_training, "_DRAWN", 100)
        assert np.mean(losses) == pytest.approx(float(module.loss(batch, np.random.default_rng(1))), rel=0.1)


def test_with_nothing_to_stop_by_every_epoch_is_learned_from_and_the_last_wins() -> None:
    own, questions = checkerboard()
    one_label = [replace(one, labels=np.ones(len(one.labels), dtype=bool)) for one in questions]
    settings = FactorTrainingConfig(epochs=5, patience=2, rows_per_step=32, learning_rate=0.02)
    fitted = partial(
        factor_training.fit,
        own,
        objective=RATING,
        is_drawable=np.ones(N_ITEMS, dtype=bool),
        model=CollaborativeConfig(dimension=4),
        training=settings,
        seed=1,
        device=torch.device("cpu"),
    )
    found, told = fitted(one_label)
    assert told["epoch"] == 5 and math.isnan(told["uauc"])
    np.testing.assert_array_equal(found.target, fitted([])[0].target)
