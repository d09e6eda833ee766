"""Validation as the lists are served, worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from flmrec_spark.lm import validation as module
from flmrec_spark.lm.blending import Calibration, ListBlend, fit_calibration, fit_list_blend
from flmrec_spark.lm.dataset import Catalog, Examples
from flmrec_spark.lm.parts import Lists, Parts, together
from flmrec_spark.lm.token_block import TokenBlock
from flmrec_spark.lm.training import BiasTerms
from flmrec_spark.lm.validation import Validation, validate
from tests.lm.test_scorer import catalog as tokens
from tests.lm.test_scorer import segmented, uncached

N_ITEMS = 4
LOGITS = {5: [3.0, 2.0, 1.0, 0.0], 6: [0.0, 1.0, 2.0, 3.0]}  # by the token of a prefix


class Told:
    """A scorer of known logits."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def head_logits_each(self, users: Iterable[tuple[list[int], None]]) -> Iterator[np.ndarray]:
        for user, factors in users:
            assert factors is None
            yield np.array([LOGITS[user[0]]])


def catalog(is_known: list[bool] | None = None) -> Catalog:
    block = TokenBlock(np.ones((N_ITEMS, 1), dtype=np.int32), np.ones(N_ITEMS, dtype=np.int32))
    return Catalog(list("abcd"), [], block, np.array(is_known or [True] * N_ITEMS))


def examples(rows: list[tuple[int, int, list[int], list[float]]]) -> Examples:
    """(prefix token, user, targets, labels), padded to the widest."""
    width = max(len(targets) for _, _, targets, _ in rows)
    targets, labels = np.full((len(rows), width), -1), np.zeros((len(rows), width), dtype=np.float32)
    for at, (_, _, asked, liked) in enumerate(rows):
        targets[at, : len(asked)], labels[at, : len(asked)] = asked, liked
    users = np.array([user for _, user, _, _ in rows])
    return Examples(
        [[token] for token, *_ in rows],
        users,
        targets,
        labels,
        0,
        0,
        np.ones(len(rows), dtype=np.int64),
        np.zeros(len(rows), dtype=bool),
    )


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Scorer", Told)


def run(
    data: Examples, *, seen: tuple[int, ...] = (), bias: BiasTerms | None = None, **known: list[bool]
) -> Validation:
    model = segmented("layer", 2)
    return validate(
        model,
        bias or BiasTerms(None, None),
        data,
        catalog(**known),
        seen=np.array(seen, dtype=np.int64),
        precision="fp32",
    )


def test_metrics_are_those_of_the_observed_targets(told):
    found = run(examples([(5, 0, [0, 2], [1, 0]), (6, 1, [3, 1, 0], [0, 1, 0])]))
    assert found.asked.text.tolist() == [3.0, 1.0, 3.0, 1.0, 0.0]
    assert found.labels.tolist() == [1, 0, 0, 1, 0]
    assert found.metrics["uauc"] == pytest.approx((1.0 + 0.5) / 2)
    # liked 3 and 1 against 1, 3, 0: 3 > 1, 3 = 3, 3 > 0, 1 = 1, 1 < 3, 1 > 0
    assert found.metrics["auc"] == pytest.approx((1 + 0.5 + 1 + 0.5 + 0 + 1) / 6)
    rows = [(3, 1), (1, 0), (3, 0), (1, 1), (0, 0)]  # (logit, liked)
    losses = [math.log1p(math.exp(-logit if liked else logit)) for logit, liked in rows]
    assert found.metrics["log_loss"] == pytest.approx(sum(losses) / 5, rel=1e-6)


def test_rows_of_one_user_are_one_user_in_uauc(told):
    """Apart each row has one label and no AUC; together the user has both."""
    apart = run(examples([(5, 0, [0], [1]), (5, 0, [2], [0])]))
    assert apart.metrics["uauc"] == 1.0
    assert math.isnan(run(examples([(5, 0, [0], [1]), (5, 1, [2], [0])])).metrics["uauc"])


def test_ndcg_ranks_the_liked_among_all_items_not_seen(told):
    found = run(examples([(5, 0, [1], [1])]))  # second of a, b, c, d
    assert found.metrics["ndcg"] == pytest.approx(1 / math.log2(3))
    assert run(examples([(5, 0, [1], [1])]), seen=(0,)).metrics["ndcg"] == 1.0  # user 0 has rated item 0
    assert run(examples([(5, 0, [1], [1])]), seen=(4,)).metrics["ndcg"] == pytest.approx(1 / math.log2(3))
    refused = run(examples([(5, 0, [1], [1])]), is_known=[False, True, True, True])
    assert refused.metrics["ndcg"] == 1.0


def test_ndcg_counts_an_item_once_and_asks_for_none_that_was_seen(told):
    assert run(examples([(5, 0, [0, 0], [1, 1])])).metrics["ndcg"] == 1.0
    assert run(examples([(5, 1, [0, 1], [1, 1])]), seen=(4,)).metrics["ndcg"] == 1.0  # item 0 cannot be listed


def test_bias_terms_count_as_they_do_in_scoring(told):
    bias = BiasTerms(None, None)
    bias.user.data = bias.user.new_tensor([10.0, -10.0])
    bias.item.data = bias.item.new_tensor([0.0, 0.5, 0.0, 0.0])
    found = run(examples([(5, 1, [1, 0], [1, 0])]), bias=bias)
    assert found.asked.text.tolist() == [2.0 + 0.5 - 10.0, 3.0 - 10.0]


def test_logits_are_those_of_the_model_and_its_mode_is_put_back():
    model, block = segmented("layer", 1), tokens()
    items = Catalog([str(at) for at in range(len(block))], [], block, np.ones(len(block), dtype=bool))
    data = Examples(
        [[5, 6, 7]],
        np.array([0]),
        np.array([[4, 1]]),
        np.array([[1, 0]], dtype=np.float32),
        0,
        0,
        np.ones(1),
        np.zeros(1, dtype=bool),
    )
    model.train()
    found = validate(model, BiasTerms(None, None), data, items, seen=np.array([], dtype=np.int64), precision="fp32")
    assert model.training
    expected = uncached(model.eval(), [5, 6, 7], block)
    np.testing.assert_allclose(found.asked.text, [expected[4], expected[1]], rtol=1e-5, atol=1e-5)


N_ROWS = 4000


def judged(n_known: int, n_new: int, *, has_listing: bool = True) -> Validation:
    """Rows of which every second is of a new user, who like by their text twice as much and by the factors never."""
    random = np.random.default_rng(3)
    text, rating, listing = random.normal(size=(3, N_ROWS))
    new = np.arange(N_ROWS) % 2 == 1
    rating[new] = 0.1 * random.normal(size=new.sum())  # offsets alone
    logits = np.where(new, 2.0 * text - 0.5, text + 1.5 * rating)
    liked = random.random(N_ROWS) < 1 / (1 + np.exp(-logits))
    parts = Parts(text, rating, None, listing if has_listing else None, None)
    relevant = random.random(N_ROWS) < 1 / (1 + np.exp(-np.where(new, text - listing, listing)))
    labels = liked.astype(np.float32)
    lists = Lists([], [], np.zeros(0, dtype=bool))
    return Validation({}, parts, labels, parts, relevant, np.ones(N_ROWS), lists, (new, new), n_new, n_known)


def test_users_without_history_are_blended_apart_where_both_kinds_are_enough():
    found = judged(50, 50)
    known, new = found.blends()
    assert new is not None and known.listing is not None and new.listing is not None
    assert (known.calibration.slope, known.calibration.factors) == pytest.approx((1.0, 1.5), abs=0.15)
    assert (new.calibration.slope, new.calibration.intercept) == pytest.approx((2.0, -0.5), abs=0.2)
    rows = np.arange(0, N_ROWS, 2)
    own = found.asked.take(rows)
    assert known.calibration == fit_calibration(own.text, own.rating, found.labels[rows] > 0.5)
    rating = known.calibration.log_odds(own.text, own.rating)
    relevant, weights = found.is_relevant[rows], found.weights[rows]
    assert known.listing == fit_list_blend(rating, None, own.listing, relevant, weights)
    assert known.listing.factors > 0.5 and new.listing.factors == 0.0  # for new ones it would count backwards


def test_where_one_kind_is_rare_all_are_blended_alike_and_unmet_tastes_weigh_as_trained():
    few_new, few_known = judged(500, 49), judged(49, 500)
    together, new = few_new.blends()
    assert new is None
    known, rest = few_known.blends()
    assert rest == together
    assert known.calibration.factors == known.calibration.slope
    alone = fit_calibration(few_known.asked.plain_rating(), None, few_known.labels > 0.5)
    assert known.calibration == Calibration(alone.slope, alone.intercept, alone.slope)
    assert known.listing is not None
    assert known.listing.factors == known.listing.head > 0
    assert judged(3, 40).blends() == (known, rest)
    assert judged(40, 3).blends() == (together, None)


def test_where_no_list_was_asked_for_what_was_learned_of_lists_orders_them():
    """The stock pair on a CPU: a validation of its lists would take hours."""
    found = judged(500, 0)
    none = replace(found, drawn=Parts(*[None] * 5), is_relevant=found.is_relevant[:0], weights=found.weights[:0])
    none = replace(none, of_new=(none.of_new[0], none.of_new[1][:0]))
    (blend, _), (usual, _) = none.blends(), found.blends()
    assert blend.calibration == usual.calibration
    assert blend.listing == ListBlend(rating=0.0, head=1.0, factors=1.0)
    without = replace(none, asked=replace(none.asked, listing=None))
    assert without.blends()[0].listing is None


def test_users_without_history_of_one_label_have_the_probability_of_all():
    found = judged(50, 50)
    labels = found.labels.copy()
    labels[1::2] = 1
    found = replace(found, labels=labels)
    known, new = found.blends()
    assert new is not None
    assert new.calibration == fit_calibration(found.asked.text, found.asked.rating, labels > 0.5)
    assert known.calibration != new.calibration


def test_kinds_are_blended_alike_where_only_one_has_a_list_of_its_own():
    found = judged(50, 50, has_listing=False)
    known, new = found.blends()
    assert known.listing is None and new is not None and new.listing is None


def test_users_without_history_are_counted_once_each(told):
    rows = examples([(5, 0, [0, 2], [1, 0]), (6, 1, [3], [0]), (6, 1, [2], [1])])
    rows = replace(rows, is_new=np.array([False, True, True]))
    found = run(rows)
    assert (found.n_new, found.n_known) == (1, 1)
    assert found.of_new[0].tolist() == [False, False, True, True]
    assert len(found.of_new[1]) == len(found.is_relevant)


def test_lists_that_are_kept_hold_what_a_list_could_hold(told, monkeypatch: pytest.MonkeyPatch):
    rows = examples([(5, 0, [1, 3], [1, 0]), (6, 1, [2, 0], [1, 1]), (5, 2, [3], [0])])
    rows = replace(rows, is_new=np.array([False, True, False]))
    known = {"seen": (2, 4), "is_known": [True, True, True, False]}  # user 0 has met item 2, user 1 item 0
    found = run(rows, **known).lists
    assert [part.text.tolist() for part in found.parts] == [[3.0, 2.0], [1.0, 2.0]]  # the third user likes nothing
    assert [part.tolist() for part in found.relevant] == [[1], [1]]
    assert found.is_new.tolist() == [False, True]
    monkeypatch.setattr(module, "_CELLS", 2 * N_ITEMS)
    assert len(run(examples([(5, at, [1], [1]) for at in range(9)])).lists.parts) == 2


def test_a_part_that_tells_liked_from_random_but_spoils_the_first_places_weighs_nothing():
    """Of what new users like most the head knows nothing, of all else everything; of the others it knows all alike."""
    n_users, n_items = 120, 150
    random = np.random.default_rng(6)
    first, drawn, relevance, places = [], [], [], []
    new = np.arange(n_users) % 2 == 1
    for is_new in new:
        listing = random.normal(size=n_items)
        liked = np.flatnonzero(random.random(n_items) < 1 / (1 + np.exp(-3 * listing + 1.5)))
        head = 2.0 * listing + random.normal(size=n_items)
        if is_new:
            head = np.where(listing > 1.3, random.normal(scale=3.0, size=n_items), 2.0 * listing)
        drawn.append(Parts(random.normal(size=n_items), None, head, listing + 0.5 * random.normal(size=n_items), None))
        relevance.append(np.isin(np.arange(n_items), liked))
        places.append(liked)
        first.append(drawn[-1].take(np.array([0, 1])))
    every, lists = together(drawn), Lists(drawn, places, new)
    of_rows, of_drawn = np.repeat(new, 2), np.repeat(new, n_items)
    labels = (np.arange(2 * n_users) % 2).astype(np.float32)
    relevant, weights = np.concatenate(relevance), np.ones(n_users * n_items)
    kinds = (of_rows, of_drawn)
    found = Validation({}, together(first), labels, every, relevant, weights, lists, kinds, 60, 60)
    known, unknown = found.blends()
    assert unknown is not None and unknown.listing is not None and known.listing is not None
    rating = unknown.calibration.log_odds(every.text)
    own = (part[of_drawn] for part in (rating, every.head, every.listing, relevant, weights))
    naive = fit_list_blend(*own)
    assert naive is not None and naive.head > 0.1
    assert (unknown.listing.head, known.listing.head > 0.1) == (0.0, True)
    assert min(unknown.listing.factors, known.listing.factors) > 0.1
    spoilt = replace(unknown, listing=naive)
    assert lists.ndcg(unknown, k=10, of=new) > lists.ndcg(spoilt, k=10, of=new) + 0.01
    few = replace(found, lists=Lists(drawn[:98], places[:98], new[:98]))  # 49 of a kind are too few to say so
    _, unsaid = few.blends()
    assert unsaid is not None and unsaid.listing == naive
