"""What profiles say of lists: the table, the Newton step against its definition, the choice on users left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.optimize import approx_fprime

from flmrec_spark.lm import profiles
from flmrec_spark.lm.collaborative import LISTING, RATING, Collaborative, Factors
from flmrec_spark.lm.mean_embeddings import features
from flmrec_spark.lm.neighbours import Neighbours
from flmrec_spark.lm.sequences import Sequences
from flmrec_spark.lm.terms import Terms
from flmrec_spark.lm.token_block import TokenBlock

N_USERS, N_ITEMS, N_WORDS = 120, 30, 8


def block(words: list[list[int]]) -> TokenBlock:
    ids = np.zeros((len(words), max(map(len, words))), dtype=np.int32)
    for row, own in enumerate(words):
        ids[row, : len(own)] = own
    return TokenBlock(ids, np.array([len(own) for own in words], dtype=np.int32))


def world(*, is_told: bool) -> tuple[TokenBlock, Sequences]:
    """Users of two kinds, each of which likes the items of its parity; the profile's second word says which, or not."""
    random = np.random.default_rng(4)
    kinds = random.integers(0, 2, N_USERS)
    words = [
        [int(random.integers(2, N_WORDS)), int(kind)] for kind in (kinds if is_told else random.permutation(kinds))
    ]
    users, items, liked = [], [], []
    for user, kind in enumerate(kinds):
        own = random.choice(N_ITEMS, size=8, replace=False)
        users += [user] * len(own)
        items += own.tolist()
        liked += (own % 2 == kind).tolist()
    told = (np.array(part) for part in (users, items, liked))
    moments = np.arange(len(users))
    return block(words), Sequences.of(*told, moments, n_users=N_USERS, n_items=N_ITEMS)


def embeddings() -> np.ndarray:
    return np.random.default_rng(2).normal(size=(N_WORDS, 5)).astype(np.float32)


def table_of(words: TokenBlock, dimension: int = 5) -> np.ndarray:
    found = profiles.token_table(embeddings(), words, dimension)
    assert found is not None
    return found


def of(table: np.ndarray, words: TokenBlock) -> np.ndarray:
    return features(table, words).astype(np.float64)


def test_the_table_has_the_directions_in_which_profiles_differ_most() -> None:
    words, _ = world(is_told=True)
    means = features(embeddings(), words)
    standard = (means - means.mean(0)) / means.std(0)
    x = features(table_of(words), words)
    assert (x**2).sum(1).mean() == pytest.approx(1.0, rel=1e-5)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-6)
    scale = (standard**2).sum(1).mean()
    np.testing.assert_allclose(x @ x.T, standard @ standard.T / scale, atol=1e-5)  # all directions: nothing is lost
    _, sizes, directions = np.linalg.svd(standard - standard.mean(0), full_matrices=False)
    two = features(table_of(words, 2), words)
    own = standard @ directions[:2].T / np.sqrt((sizes[:2] ** 2).sum() / N_USERS)
    np.testing.assert_allclose(np.abs(two), np.abs(own), atol=1e-5)


@pytest.mark.parametrize("words", [[[3, 1]] * 9, [[], [], []], [[4]]])
def test_profiles_that_do_not_differ_have_no_directions(words: list[list[int]]) -> None:
    if not any(words):
        ids = np.zeros((3, 1), dtype=np.int32)
        assert profiles.token_table(embeddings(), TokenBlock(ids, np.zeros(3, dtype=np.int32)), 4) is None
        return
    assert profiles.token_table(embeddings(), block(words), 4) is None


def test_targets_are_one_newton_step_from_popularity() -> None:
    words, sequences = world(is_told=True)
    table, variance = table_of(words), 0.3
    found = profiles.fit(table, of(table, words), sequences, variance)
    assert not found.target[-1].any()
    x = of(table, words)
    likes = np.zeros((N_USERS, N_ITEMS))
    for user, item, liked in zip(sequences.users, sequences.items, sequences.liked, strict=True):
        likes[user, item] = max(likes[user, item], liked)
    share = (likes.sum(0) + 0.5) / (likes.sum() + 0.5 * N_ITEMS)
    for item in (0, 7):

        def loss(w: np.ndarray, item: int = item) -> float:
            """Minus the log of what is probable of one item, by its definition."""
            rate = likes.sum(1) * share[item] * np.exp(x @ w)
            return float((rate - likes[:, item] * np.log(rate + 1e-300)).sum() + w @ w / (2 * variance))

        zero = np.zeros(x.shape[1])
        curvature = np.stack(
            [approx_fprime(zero, lambda w, k=k: approx_fprime(w, loss, 1e-5)[k], 1e-4) for k in range(len(zero))]
        )
        step = -np.linalg.solve(curvature, approx_fprime(zero, loss, 1e-7))
        np.testing.assert_allclose(found.target[item], step, rtol=0.02, atol=2e-3)


def test_a_like_counts_once_however_often_it_stands() -> None:
    words, sequences = world(is_told=True)
    twice = Sequences.of(
        *(np.tile(part, 2) for part in (sequences.users, sequences.items, sequences.liked)),
        np.arange(2 * len(sequences.users)),
        n_users=N_USERS,
        n_items=N_ITEMS,
    )
    table = table_of(words)
    both = (profiles.fit(table, of(table, words), one, 0.1).target for one in (sequences, twice))
    np.testing.assert_allclose(*both, rtol=1e-6)


def test_what_profiles_tell_is_taken_and_what_they_do_not_is_left() -> None:
    every = np.ones(N_ITEMS, dtype=bool)
    found = []
    for is_told in (True, False):
        words, sequences = world(is_told=is_told)
        x = of(table_of(words), words)
        found.append(profiles.choose(x, profiles.likes_of(sequences), allowed=every, seed=1))
    told, not_told = found
    assert not_told is None
    assert told is not None and told.ndcg > told.ndcg_without + 0.05
    words, sequences = world(is_told=True)
    table = table_of(words)
    own = profiles.fit(table, of(table, words), sequences, told.variance)
    likes = np.log1p(np.asarray(profiles.likes_of(sequences).sum(0)).ravel())
    for kind in (0, 1):
        asked = [one for one in range(N_USERS) if words.ids[one, 1] == kind]
        first = [np.argmax(likes + own.target[:-1] @ own.taste(words.ids[one].tolist())) % 2 for one in asked]
        assert np.mean(np.array(first) == kind) > 0.9


def test_of_few_users_nothing_is_learned() -> None:
    words, sequences = world(is_told=True)
    x = of(table_of(words), words)
    likes = profiles.likes_of(sequences)
    assert profiles.choose(x[:49], likes[:49], allowed=np.ones(N_ITEMS, dtype=bool), seed=1) is None


def with_profile() -> Factors:
    random = np.random.default_rng(3)

    def drawn(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    mix = np.array([1.0, 0.5], dtype=np.float32)
    near, profile = Neighbours(drawn(3, 4), drawn(4, 4), None), profiles.Profile(drawn(N_WORDS, 2), drawn(4, 2))
    return Factors(drawn(6, 3), drawn(4, 3), drawn(4), mix, 2.0, near, profile, drawn(4))


def test_a_taste_has_the_profile_behind_history_and_neighbours_whatever_the_history() -> None:
    found = with_profile()
    assert found.profile is not None and found.near is not None
    assert (found.width, found.of_profile) == (10, slice(7, 9))
    items, labels, words = np.array([2, 0]), np.array([1.0, 0.0]), [5, 1]
    plain = replace(found, profile=None, popular=None)
    expected = (found.profile.tokens[5] + found.profile.tokens[1]) / 2
    own = [*plain.taste(items, labels), *expected, 0]
    np.testing.assert_allclose(found.taste(items, labels, words), own, rtol=1e-6)
    np.testing.assert_allclose(found.taste(items[:0], labels[:0], words), [0] * 7 + expected.tolist() + [1], rtol=1e-6)
    assert found.taste(items[:0], labels[:0]).tolist() == [0] * 9 + [1]  # a profile without a word
    known = found.vectors(np.array([1, -1]))
    parts = found.target[1], found.near.target[1], found.profile.target[1], found.popular[1:2]  # type: ignore[index]
    np.testing.assert_array_equal(known[0], np.concatenate(parts))


def test_a_hidden_user_shows_the_profile_alone() -> None:
    whole = Collaborative(pa.array(["a", "b", "c"]), {LISTING: with_profile(), RATING: with_profile()}, 5)
    items = whole.of_items(np.arange(3))
    terms = Terms(items, hidden_share=1.0).train()
    taste = whole.taste(np.array([2, 0]), np.array([1.0, 0.0]), [5, 1])
    shown = terms.shown(torch.from_numpy(taste[None]), torch.arange(3))
    assert shown.users is not None
    new = whole.taste(np.zeros(0, dtype=np.intp), np.zeros(0), [5, 1])
    np.testing.assert_array_equal(shown.users[0].numpy(), new)
    assert new.any() and not np.array_equal(new, taste)
