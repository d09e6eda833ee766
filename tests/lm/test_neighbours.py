"""Neighbours: the low-rank terms against the dense closed form, tastes by hand, the choice of penalty and weight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flmrec_spark.errors import CheckpointError
from flmrec_spark.lm import factor_files, neighbour_choice, neighbours
from flmrec_spark.lm.collaborative import LISTING, RATING, Collaborative, Factors
from flmrec_spark.lm.factor_validation import Question
from flmrec_spark.lm.grades import Grades
from flmrec_spark.lm.neighbours import Neighbours, Spectrum
from flmrec_spark.lm.sequences import Sequences

HAND = Neighbours(
    history=np.array([[1, 0], [0, 2], [1, 1]], dtype=np.float32),
    target=np.array([[1, 1], [0, 2], [1, 0], [0, 0]], dtype=np.float32),
    expected=np.array([0.5, 0.25, 0.75], dtype=np.float32),
)


def test_a_taste_is_the_sum_of_what_was_liked_more_than_expected() -> None:
    # over: 1 - 0.75 and 0 - 0.25, whose sum is 0; so nothing is taken off
    np.testing.assert_allclose(HAND.taste(np.array([2, 1]), np.array([1.0, 0.0])), [0.25, -0.25])
    # over: 1 - 0.5, of which 0.5 / 5 are the user's
    np.testing.assert_allclose(HAND.taste(np.array([0]), np.array([1.0])), [0.4, 0])
    assert HAND.taste(np.zeros(0, dtype=np.intp), np.zeros(0)).tolist() == [0, 0]


def made(n_users: int, n_items: int, n_rows: int, seed: int) -> Sequences:
    """Rows of two kinds of users and items that like each other; the last item has none."""
    random = np.random.default_rng(seed)
    pairs = random.permutation(n_users * (n_items - 1))[:n_rows]
    users, items = pairs // (n_items - 1), pairs % (n_items - 1)
    liked = (users % 2 == items % 2) ^ (random.random(len(pairs)) < 0.1)
    labels = np.clip(liked * 0.6 + random.uniform(0.0, 0.4, size=len(pairs)), 0, 1)
    moments = random.integers(1, 1000, size=len(pairs))
    return Sequences.of(users, items, liked, moments, labels, n_users=n_users, n_items=n_items)


@settings(max_examples=15)
@given(st.integers(0, 1000), st.floats(0.1, 20))
def test_of_full_rank_it_is_the_closed_form_of_ease_on_the_residuals(seed: int, penalty: float) -> None:
    own = made(30, 8, 120, seed)
    spectrum = Spectrum.of_labels(own, 12, seed=1)
    assert spectrum is not None and spectrum.vectors.shape == (8, 12)
    found = spectrum.neighbours(penalty, 2.5)
    residuals = np.zeros((30, 8))
    # what is left when level, items and users are taken off in turn
    level, of_item, of_user = own.labels.mean(dtype=np.float64), np.zeros(8), np.zeros(30)
    for _ in range(5):
        for place in range(8):
            rows = own.items == place
            of_item[place] = (own.labels - level - of_user[own.users])[rows].sum() / (rows.sum() + 8)
        for user in range(30):
            rows = own.users == user
            of_user[user] = (own.labels - level - of_item[own.items])[rows].sum() / (rows.sum() + 4)
    residuals[own.users, own.items] = own.labels - level - of_item[own.items] - of_user[own.users]
    squares = np.linalg.eigvalsh(residuals.T @ residuals)
    squares = squares[squares > 1e-12 * squares.max()]
    inverse = np.linalg.inv(residuals.T @ residuals + penalty * squares.mean() * np.eye(8))
    expected = -inverse / np.diag(inverse)  # Steck 2019, eq. 8
    np.fill_diagonal(expected, 0.0)
    got = found.history.astype(np.float64) @ found.target[:-1].T.astype(np.float64) / 2.5
    off = ~np.eye(8, dtype=bool)
    np.testing.assert_allclose(got[off], expected[off], atol=1e-5)
    np.testing.assert_allclose(found.expected, level + of_item, atol=1e-6)
    assert not found.target[-1].any()


def repeated(own: Sequences) -> Sequences:
    """The same rows, the first half of them twice."""
    half = len(own.users) // 2
    parts = [np.concatenate([part, part[:half]]) for part in (own.users, own.items, own.liked, own.moments, own.labels)]
    return Sequences.of(*parts, n_users=own.n_users, n_items=own.n_items)


@settings(max_examples=15)
@given(st.integers(0, 1000), st.floats(0.1, 20))
def test_of_lists_it_is_the_closed_form_of_ease_on_who_met_what(seed: int, penalty: float) -> None:
    own = made(30, 8, 120, seed)
    spectrum, again = (Spectrum.of_met(rows, 12, seed=1) for rows in (own, repeated(own)))
    assert spectrum is not None and again is not None and spectrum.expected is None
    found = spectrum.neighbours(penalty, 2.5)
    met = np.zeros((30, 8))
    met[own.users, own.items] = 1.0
    squares = np.linalg.eigvalsh(met.T @ met)
    squares = squares[squares > 1e-12 * squares.max()]
    inverse = np.linalg.inv(met.T @ met + penalty * squares.mean() * np.eye(8))
    expected = -inverse / np.diag(inverse)  # Steck 2019, eq. 8
    got = found.history.astype(np.float64) @ found.target[:-1].T.astype(np.float64) / 2.5
    off = ~np.eye(8, dtype=bool)
    np.testing.assert_allclose(got[off], expected[off], atol=1e-5)
    np.testing.assert_allclose(again.values, spectrum.values, atol=1e-9)  # what is met twice is met


def test_a_taste_for_lists_counts_each_item_once_whatever_came_of_it() -> None:
    near = replace(HAND, expected=None)
    np.testing.assert_array_equal(near.taste(np.array([2, 0, 2]), np.array([1.0, 0.0, 0.0])), [2, 1])
    assert near.taste(np.zeros(0, dtype=np.intp), np.zeros(0)).tolist() == [0, 0]


def test_worlds_too_small_have_no_spectrum() -> None:
    for of in (Spectrum.of_labels, Spectrum.of_met):
        assert of(made(1, 5, 3, 1), 4, seed=1) is None
        assert of(made(5, 2, 5, 1), 4, seed=1) is not None


def empty(n_items: int) -> Factors:
    """Factors that say nothing."""
    zeros = np.zeros((n_items + 1, 1), dtype=np.float32)
    return Factors(np.zeros((2 * n_items, 1), dtype=np.float32), zeros, zeros[:, 0], np.ones(2, dtype=np.float32), 1.0)


def world(seed: int = 1) -> tuple[Sequences, list[Question]]:
    """What is known of each user, and the rows that were held out."""
    n_users, n_items = 60, 21
    whole = made(n_users, n_items, 900, seed)
    is_held = np.random.default_rng(seed).random(len(whole.users)) < 0.2
    parts = [getattr(whole, name)[~is_held] for name in ("users", "items", "liked", "moments", "labels")]
    known = Sequences.of(*parts, n_users=n_users, n_items=n_items)
    questions = []
    for user in range(n_users):
        rows = is_held & (whole.users == user)
        history = known.before(user, 10_000, 300)
        questions.append(Question(user, *history, whole.items[rows], whole.liked[rows], np.zeros(0, dtype=np.intp)))
    return known, questions


def choose(
    known: Sequences, questions: list[Question], factors: Factors | None = None
) -> neighbour_choice.Choice | None:
    spectrum = Spectrum.of_labels(known, 8, seed=1)
    assert spectrum is not None
    own = factors or empty(known.n_items)
    offset = np.append(known.offsets.item, np.float32(0)) + 0.01 * np.arange(known.n_items + 1, dtype=np.float32)
    return neighbour_choice.choose_for_ratings(spectrum, own, offset, known.offsets.user, questions)


def test_the_choice_helps_where_users_agree_and_is_none_where_nothing_is_known() -> None:
    known, questions = world()
    found = choose(known, questions)
    assert found is not None and found.weight > 0
    assert found.log_loss < 0.8 * found.log_loss_without
    nobody = [replace(one, items=one.items[:0], history_labels=one.history_labels[:0]) for one in questions]
    assert choose(known, nobody) is None
    assert choose(known, questions[:3]) is None  # too few rows
    assert choose(known, [replace(one, labels=np.ones(len(one.labels), dtype=bool)) for one in questions]) is None
    assert choose(known, []) is None


def test_factors_of_another_size_have_another_weight_and_the_term_has_the_same() -> None:
    known, questions = world()
    items, labels = (np.concatenate([getattr(one, name) for one in questions]) for name in ("targets", "labels"))
    likes = np.bincount(items, weights=labels - 0.5, minlength=known.n_items)
    offset = np.append(likes, 0).astype(np.float32) / 10  # says something, so it has a weight of its own
    spectrum = Spectrum.of_labels(known, 8, seed=1)
    assert spectrum is not None
    once, twice = (
        neighbour_choice.choose_for_ratings(
            spectrum, empty(known.n_items), size * offset, known.offsets.user, questions
        )
        for size in (np.float32(1), np.float32(2))
    )
    assert once is not None and twice is not None
    assert twice.weight == pytest.approx(once.weight, rel=1e-2)
    assert 2 * twice.of_factors == pytest.approx(once.of_factors, rel=1e-2)


def taken(known: Sequences, questions: list[Question], factors: Factors) -> neighbour_choice.Choice | None:
    spectrum = Spectrum.of_met(known, 8, seed=1)
    assert spectrum is not None
    return neighbour_choice.choose_for_lists(spectrum, factors, questions, allowed=np.ones(known.n_items, dtype=bool))


def test_the_choice_for_lists_helps_where_users_meet_what_others_met() -> None:
    known, questions = camps()
    popular = replace(empty(known.n_items), offset=np.append(known.item_log_likes(), 0).astype(np.float32))
    found = taken(known, questions, popular)
    assert found is not None and found.weight > 0
    assert found.log_loss < found.log_loss_without - 0.4  # of at most log 2, as half of the items are the user's
    assert taken(known, questions[:3], popular) is None  # too few rows
    assert taken(known, [], popular) is None
    seen = [replace(one, seen=one.targets) for one in questions]
    assert taken(known, seen, popular) is None  # a list would hold none of them
    nobody = [replace(one, items=one.items[:0], history_labels=one.history_labels[:0]) for one in questions]
    assert taken(known, nobody, popular) is None
    twice = taken(known, questions, replace(popular, offset=2 * popular.offset))
    assert twice is not None
    assert twice.weight == pytest.approx(found.weight, rel=1e-2)
    assert 2 * twice.of_factors == pytest.approx(found.of_factors, rel=1e-2)


def test_factors_and_term_as_they_are_served_have_the_loss_that_was_told_even_beside_poor_factors() -> None:
    known, questions = camps()
    random = np.random.default_rng(3)
    poor = replace(
        empty(known.n_items),
        history=random.normal(size=(2 * known.n_items, 1)).astype(np.float32),
        target=np.append(random.normal(size=(known.n_items, 1)), [[0]], axis=0).astype(np.float32),
        offset=np.append(known.item_log_likes(), 0).astype(np.float32),
    )
    choice, spectrum = taken(known, questions, poor), Spectrum.of_met(known, 8, seed=1)
    assert choice is not None and spectrum is not None
    assert choice.of_factors < 0.5
    served = replace(poor.scaled(choice.of_factors), near=spectrum.neighbours(choice.penalty, choice.weight))
    contest = neighbour_choice._Contest.of(questions, np.ones(known.n_items, dtype=bool))
    assert contest is not None
    told = contest.values(lambda one, items: served.scores(served.taste(one.items, one.history_labels), items))
    liked, others = np.split(told, [sum(len(one) for one in contest.liked)])
    users = np.repeat(np.arange(len(contest.liked)), [len(one) for one in contest.liked])
    rows = np.column_stack([liked, others.reshape(len(contest.liked), -1)[users]])
    assert np.mean(np.log(np.exp(rows).sum(1)) - liked) == pytest.approx(choice.log_loss, abs=1e-3)


def camps() -> tuple[Sequences, list[Question]]:
    """Users who meet the items of their own half, the first ones more often, and the next two that they like."""
    random, n_users, n_items = np.random.default_rng(1), 60, 40
    users, items, questions = [], [], []
    for user in range(n_users):
        own = np.arange(user % 2, n_items, 2)
        met = random.choice(own, size=8, replace=False, p=(odds := 1.0 / (5.0 + np.arange(len(own)))) / odds.sum())
        users += [user] * 6
        items += met[:6].tolist()
        labels = np.ones(6, dtype=np.float32)
        questions.append(Question(user, met[:6], labels, met[6:], np.ones(2, dtype=bool), met[:6]))
    rows = len(users)
    parts = np.array(users), np.array(items), np.ones(rows, dtype=bool), np.arange(rows), np.ones(rows)
    return Sequences.of(*parts, n_users=n_users, n_items=n_items), questions


def test_the_loss_of_a_contest_is_that_of_a_softmax_and_has_its_least_at_the_weights() -> None:
    known, questions = camps()
    contest = neighbour_choice._Contest.of(questions, np.ones(known.n_items, dtype=bool))
    assert contest is not None and contest.others.shape == (60, 500)
    assert [len(one) for one in contest.liked] == [2] * 60
    assert not any(np.isin(one.items, others).any() for one, others in zip(questions, contest.others, strict=True))
    random = np.random.default_rng(2)
    parts: Any = [np.append(random.normal(size=120) + 0.5, random.normal(size=60 * 500)) for _ in range(2)]
    weights, loss = contest.fitted(parts)

    def expected(at: Any) -> float:
        whole = at @ np.stack(parts)
        own, rest = whole[:120], whole[120:].reshape(60, 500)
        every = np.concatenate([own[:, None], np.repeat(rest, 2, axis=0)], axis=1)
        return float(np.mean(-own + np.log(np.exp(every).sum(1))))  # two of each user: the mean of means

    assert loss == pytest.approx(expected(np.array(weights)))
    for step in ((0.05, 0), (-0.05, 0), (0, 0.05), (0, -0.05)):
        assert expected(np.add(weights, step)) > loss


@given(st.integers(0, 1000))
def test_a_turn_keeps_every_product_and_the_directions_of_the_edition_before(seed: int) -> None:
    random = np.random.default_rng(seed)
    old = Neighbours(*(random.normal(size=(n, 4)).astype(np.float32) for n in (9, 10)), np.zeros(9, dtype=np.float32))
    turn = np.linalg.qr(random.normal(size=(4, 4)))[0].astype(np.float32)
    places = np.array([3, 0, 1, 2, 4, 5, -1, 8, 7, 6])
    history = np.where(places[:, None] >= 0, old.history[places], 0.5) @ turn
    new = Neighbours(history, random.normal(size=(11, 4)).astype(np.float32), np.zeros(10, dtype=np.float32))
    found = neighbours.turned(new, old, places)
    np.testing.assert_allclose(found.history @ found.target.T, new.history @ new.target.T, atol=1e-4)
    np.testing.assert_allclose(found.history[places >= 0], old.history[places[places >= 0]], atol=1e-4)


def with_neighbours() -> Collaborative:
    random = np.random.default_rng(1)
    drawn: Any = [random.normal(size=shape).astype(np.float32) for shape in ((6, 3), (4, 3), (4,), (2,))]
    factors = Factors(*drawn, 2.0, HAND)
    return Collaborative(pa.array(["a", "b", "c"]), {RATING: factors}, 4, grades=Grades.of([1, 2, 5], [0, 0, 1]))


def test_they_are_further_numbers_of_the_rating_vectors() -> None:
    found = with_neighbours()
    factors = found.factors[RATING]
    bare = replace(factors, near=None)
    items, labels = np.array([2, 0]), found.labels([1, 5], [False, True])
    np.testing.assert_array_equal(labels, [0, 1])
    taste = found.taste(items, labels)
    assert (found.width, factors.width, bare.width, taste.shape) == (5, 5, 3, (5,))
    asked = np.array([0, 1, 2, -1])
    expected = bare.scores(bare.taste(items, labels), asked) + HAND.target[asked] @ HAND.taste(items, labels)
    np.testing.assert_allclose(factors.scores(taste, asked), expected, rtol=1e-5)
    np.testing.assert_allclose(found.of_items(asked).term(RATING, taste), expected, rtol=1e-5)
    assert found.taste(items[:0], labels[:0]).tolist() == [0] * 5
    assert replace(found, grades=None).labels([1, 5], [False, True]).tolist() == [0, 1]


def test_they_are_saved_with_the_grades_and_damage_is_named(tmp_path: Path) -> None:
    own = with_neighbours()
    factor_files.save(tmp_path, own)
    found = factor_files.load(tmp_path)
    assert found is not None and found.grades is not None and own.grades is not None
    near = found.factors[RATING].near
    assert near is not None and list(found.factors) == [RATING]
    for part in ("history", "target", "expected"):
        np.testing.assert_array_equal(getattr(near, part), getattr(HAND, part))
    np.testing.assert_array_equal(found.grades.disliked, own.grades.disliked)
    lists = replace(own.factors[RATING], near=replace(HAND, expected=None))
    factor_files.save(tmp_path, replace(own, factors={LISTING: lists}))
    again = factor_files.load(tmp_path)
    assert again is not None
    near = again.factors[LISTING].near
    assert near is not None and near.expected is None
    np.testing.assert_array_equal(near.target, HAND.target)
    short = replace(own.factors[RATING], near=replace(HAND, expected=HAND.expected[:2]))
    factor_files.save(tmp_path, replace(own, factors={RATING: short}))
    with pytest.raises(CheckpointError, match=r"factors.safetensors: rating: got neighbours of 2 items, expected 3"):
        factor_files.load(tmp_path)
