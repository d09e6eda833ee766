"""What is fitted on the valid split: it finds what made the labels, and never turns an order."""

from __future__ import annotations

import numpy as np
import pytest

from flmrec_spark.lm.blending import Calibration, ListBlend, fit_calibration, fit_list_blend, sigmoid, smaller_by_one

N = 40_000


def test_calibration_finds_the_slope_and_intercept_that_made_the_labels():
    random = np.random.default_rng(1)
    logits = random.normal(size=N)
    found = fit_calibration(logits, None, random.random(N) < sigmoid(2.0 * logits - 0.5))
    assert (found.slope, found.intercept) == (pytest.approx(2.0, abs=0.06), pytest.approx(-0.5, abs=0.04))


def test_calibration_weighs_text_and_factors_apart():
    random = np.random.default_rng(2)
    text, factors = random.normal(size=(2, N))
    found = fit_calibration(text, factors, random.random(N) < sigmoid(0.5 * text + 1.5 * factors + 0.25))
    assert found.slope == pytest.approx(0.5, abs=0.05)
    assert found.factors == pytest.approx(1.5, abs=0.06)
    assert found.intercept == pytest.approx(0.25, abs=0.04)
    np.testing.assert_allclose(found.probability(text, factors), sigmoid(found.log_odds(text, factors)))


def test_factors_that_count_backwards_weigh_nothing():
    random = np.random.default_rng(3)
    text, factors = random.normal(size=(2, N))
    liked = random.random(N) < sigmoid(text - factors)
    found = fit_calibration(text, factors, liked)
    alone = fit_calibration(text, None, liked)
    assert found.factors == 0.0
    assert (found.slope, found.intercept) == (alone.slope, alone.intercept)


def test_separable_rows_give_a_finite_slope_and_platts_probabilities():
    found = fit_calibration(np.array([-1.0, -1.0, 1.0, 1.0]), None, np.array([False, False, True, True]))
    # Platt's targets: (2 + 1) / (2 + 2) for the liked rows, 1 / (2 + 2) for the others
    np.testing.assert_allclose(found.probability(np.array([-1.0, 1.0])), [0.25, 0.75], rtol=1e-3)


def test_calibration_never_turns_the_order_and_needs_both_labels():
    assert fit_calibration(np.array([1.0, 2.0, -1.0]), None, np.array([False, False, True])) == Calibration()
    assert fit_calibration(np.array([1.0, 2.0]), None, np.array([True, True])) == Calibration()


def test_a_list_blend_finds_the_weights_of_its_parts():
    random = np.random.default_rng(4)
    rating, head, factors = random.normal(size=(3, N))
    relevant = random.random(N) < sigmoid(0.3 * rating + 0.6 * head + 1.2 * factors - 0.4)
    found = fit_list_blend(rating, head, factors, relevant, np.ones(N))
    assert found is not None
    told = [found.rating, found.head, found.factors, found.intercept]
    np.testing.assert_allclose(told, [0.3, 0.6, 1.2, -0.4], atol=0.06)
    assert found.log_odds(1.0, 2.0, 3.0) == pytest.approx(np.dot(told, [1.0, 2.0, 3.0, 1.0]))


def test_a_part_that_orders_lists_backwards_weighs_nothing_and_the_others_are_fitted_without_it():
    random = np.random.default_rng(5)
    rating, factors = random.normal(size=(2, N))
    relevant = random.random(N) < sigmoid(factors - 0.5 * rating)
    found = fit_list_blend(rating, None, factors, relevant, np.ones(N))
    assert found is not None and (found.rating, found.head) == (0.0, 0.0)
    assert found.factors == pytest.approx(1.0, abs=0.1)


def test_weights_count_as_so_many_rows():
    random = np.random.default_rng(6)
    factors = random.normal(size=200)
    relevant = random.random(200) < sigmoid(factors)
    weights = random.integers(1, 4, size=200)
    once = fit_list_blend(np.zeros(200), None, factors, relevant, weights.astype(float))
    again = np.repeat(np.arange(200), weights)
    often = fit_list_blend(np.zeros(len(again)), None, factors[again], relevant[again], np.ones(len(again)))
    assert isinstance(once, ListBlend) and isinstance(often, ListBlend)
    assert once.factors == pytest.approx(often.factors, rel=1e-3)


@pytest.mark.parametrize("weight", [1.5, -1.5])
def test_new_items_stand_as_high_as_they_are_liked(weight):
    random = np.random.default_rng(7)
    factors, is_new = random.normal(size=N), random.random(N) < 0.3
    relevant = random.random(N) < sigmoid(factors + weight * is_new - 0.2)
    found = fit_list_blend(np.zeros(N), None, factors, relevant, np.ones(N), is_new)
    assert found is not None
    assert (found.factors, found.new) == (pytest.approx(1.0, abs=0.06), pytest.approx(weight, abs=0.08))
    assert found.log_odds(0.0, 0.0, 1.0, True) == pytest.approx(found.factors + found.intercept + found.new)


def test_where_all_that_is_liked_next_is_new_it_stands_first_by_a_finite_weight():
    """100 users who liked one new item each, beside an item that is new for 20 of them: with a row more of each kind
    new is liked (101 : 21) and the others (1 : 81), of targets 103 / 104 and 1 / 104."""
    relevant = np.arange(200) < 100
    is_new = relevant | (np.arange(200) >= 180)
    found = fit_list_blend(np.zeros(200), np.zeros(200), None, relevant, np.ones(200), is_new)
    assert found is not None
    new, known = (101 * 103 + 21 * 1) / (122 * 104), (1 * 103 + 81 * 1) / (82 * 104)
    assert found.new == pytest.approx(np.log(new / (1 - new) / (known / (1 - known))), rel=1e-3)


def test_two_separable_users_make_no_certainties():
    relevant, factors = np.arange(4) < 2, np.array([9.0, 8.0, -8.0, -9.0])
    found = fit_list_blend(np.zeros(4), None, factors, relevant, np.ones(4))
    assert found is not None
    # Platt's targets of two rows on each side: 3/4 and 1/4
    np.testing.assert_allclose(sigmoid(found.log_odds(0.0, 0.0, factors)), [0.75, 0.75, 0.25, 0.25], atol=0.02)


def test_text_that_only_corrects_the_factors_shares_their_weight():
    random = np.random.default_rng(8)
    taste, noise = random.normal(size=(2, N))
    liked = random.random(N) < sigmoid(taste)
    text, factors = 0.3 * taste + noise, 0.8 * taste + noise  # the text takes the noise off: a weight below 0
    found = fit_calibration(text, factors, liked)
    assert found.slope == found.factors > 0
    assert found.slope == pytest.approx(fit_calibration(text + factors, None, liked).slope)


@pytest.mark.parametrize("is_new", [True, False])
def test_where_every_item_is_alike_nothing_is_said_of_new_ones(is_new):
    rows = np.linspace(-1, 1, 10)
    relevant = np.arange(10) % 3 > 0
    found = fit_list_blend(np.zeros(10), rows, None, relevant, np.ones(10), np.full(10, is_new))
    assert found == fit_list_blend(np.zeros(10), rows, None, relevant, np.ones(10))


def test_without_a_listing_part_or_a_difference_there_is_no_blend():
    rows = np.linspace(-1, 1, 10)
    assert fit_list_blend(rows, None, None, rows > 0, np.ones(10)) is None
    assert fit_list_blend(rows, rows, rows, rows > 5, np.ones(10)) is None


def test_of_a_list_blend_each_part_may_go_but_the_last_of_lists() -> None:
    blend = ListBlend(0.3, 0.6, 1.2)

    def letters(names: str) -> list[str]:
        whole = {"r": "rating", "h": "head", "f": "factors"}
        found = smaller_by_one(blend, frozenset(whole[letter] for letter in names))
        return ["".join(letter for letter, name in whole.items() if name in one) for one in found]

    assert letters("rhf") == ["hf", "rf", "rh"]  # of equally good ones the first is taken: the rating goes first
    assert (letters("hf"), letters("rf"), letters("rh")) == (["f", "h"], ["f"], ["h"])
    assert (letters("f"), letters("h")) == ([], [])


def test_the_listing_factors_are_part_of_the_probability_where_they_say_more_than_they_cost():
    random = np.random.default_rng(9)
    text, factors, share = random.normal(size=(3, N))
    share = share - 6
    liked = random.random(N) < sigmoid(text + factors + 0.1 * (share + 6) + 0.25)
    found = fit_calibration(text, factors, liked, share)
    assert (found.slope, found.factors, found.listing) == pytest.approx((1.0, 1.0, 0.1), abs=0.06)
    assert found.level == pytest.approx(share.mean())
    assert found.intercept == pytest.approx(0.25, abs=0.04)  # what is told of a pair whose share nobody knows
    np.testing.assert_allclose(
        found.log_odds(text, factors, share), found.log_odds(text, factors) + found.listing * (share - found.level)
    )
    assert fit_calibration(text, factors, liked) == fit_calibration(text, factors, liked, -share)


def test_few_rows_of_noise_add_no_listing_factors():
    random = np.random.default_rng(10)
    n_added = 0
    for _ in range(100):
        text, share = random.normal(size=(2, 200))
        liked = random.random(200) < sigmoid(text)
        n_added += fit_calibration(text, None, liked, share).listing > 0
    # Twice the gain is chi-squared of one degree, above 2 for 16 % of noise, and half of that counts forwards
    assert 2 <= n_added <= 16
