"""The scorer against the uncached model, whatever the blocks, the subset and the calls before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flmrec_spark.lm import one_by_one
from flmrec_spark.lm import scorer as module
from flmrec_spark.lm.blending import Calibration
from flmrec_spark.lm.model import Segment, SegmentedModel
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.token_block import TokenBlock
from flmrec_spark.ranking import best
from tests.tiny import tiny_bert

N_LAYERS, N_ITEMS = 3, 11
FORMS = [("layer", layer) for layer in range(N_LAYERS + 1)] + [("attention", N_LAYERS - 1), ("full", N_LAYERS - 1)]
USERS = [[5, 6, 7, 8], [9], [40, 41, 42, 43, 44, 45, 46]]


def segmented(join: str, join_layer: int) -> SegmentedModel:
    model = SegmentedModel(tiny_bert(), join=join, join_layer=join_layer, item_position=20, item_tokens=8).eval()
    generator = torch.Generator().manual_seed(7)
    for weight in (model.rating.item_weight, model.rating.user_weight):
        weight.data.normal_(generator=generator)
    return model


def catalog() -> TokenBlock:
    random = np.random.default_rng(3)
    lengths = random.integers(1, 9, N_ITEMS).astype(np.int32)
    ids = random.integers(5, 60, (N_ITEMS, 8)).astype(np.int32)
    return TokenBlock(ids[:, : lengths.max()], lengths)


@torch.inference_mode()
def uncached(model: SegmentedModel, user: list[int], items: TokenBlock) -> list[float]:
    """Each pair on its own, without padding."""
    found = []
    for row, length in enumerate(items.lengths.tolist()):
        item = torch.from_numpy(items.ids[row : row + 1, :length]).long()
        one, n_user, n_item = torch.tensor([user]), torch.tensor([len(user)]), torch.tensor([length])
        if model.join == "full":
            logit = model.rating(*model.pair(Segment(one, n_user), Segment(item, n_item)))[0]
        else:
            states = model.encode_users(one, n_user), model.encode_items(item, n_item)
            logit = model.join_items(*states, torch.tensor([[0]]))[0, 0]
        found.append(float(logit))
    return found


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that 11 items do not fill evenly."""
    monkeypatch.setattr(module, "_ENCODE_BLOCK", 4)
    monkeypatch.setattr(one_by_one, "LAST_BLOCK", {"cpu": 3})
    for reader in (module, one_by_one):
        monkeypatch.setattr(reader, "EARLY_BLOCK", {"cpu": 2})


@pytest.mark.parametrize(("join", "join_layer"), FORMS)
def test_cached_logits_equal_the_uncached_pair(join, join_layer):
    scorer = Scorer(segmented(join, join_layer), catalog())
    for user in USERS:
        np.testing.assert_allclose(scorer.logits(user), uncached(scorer.model, user, catalog()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("join", "join_layer"), FORMS)
def test_blocks_change_nothing(join, join_layer, small_blocks):
    scorer = Scorer(segmented(join, join_layer), catalog())
    expected = uncached(scorer.model, USERS[0], catalog())
    np.testing.assert_allclose(scorer.logits(USERS[0]), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scorer.pair_logits(USERS[0], catalog()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("join", "join_layer"), FORMS)
def test_a_subset_has_the_logits_of_the_full_pass(join, join_layer, small_blocks):
    scorer = Scorer(segmented(join, join_layer), catalog())
    every = scorer.logits(USERS[0])
    for chosen in ([7, 0, 10, 3, 3], [5], list(range(N_ITEMS))):
        index = np.array(chosen)
        np.testing.assert_allclose(scorer.logits(USERS[0], items=index), every[index], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("join", "join_layer"), [form for form in FORMS if form[0] != "full"])
def test_every_process_that_maps_saved_states_gives_the_same_bits(join, join_layer, tmp_path: Path):
    model = segmented(join, join_layer)
    encoded = Scorer(model, catalog())
    encoded.save_states(encoded.encode(catalog()), tmp_path / "states")
    mapped = [Scorer(model, catalog(), states=tmp_path / "states") for _ in range(4)]
    for user in USERS:
        first, *others = [scorer.logits(user) for scorer in mapped]
        np.testing.assert_allclose(first, encoded.logits(user), rtol=1e-5, atol=1e-5)
        for other in others:
            np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize(("join", "join_layer"), FORMS)
def test_a_user_is_scored_the_same_whoever_came_before(join, join_layer):
    scorer = Scorer(segmented(join, join_layer), catalog())
    forwards = [scorer.logits(user) for user in USERS]
    backwards = [scorer.logits(user) for user in reversed(USERS)][::-1]
    np.testing.assert_array_equal(forwards, backwards)


@pytest.mark.parametrize(("join", "join_layer"), FORMS)
def test_bf16_is_close_and_leaves_the_given_model_alone(join, join_layer):
    model = segmented(join, join_layer)
    exact, rounded = Scorer(model, catalog()), Scorer(model, catalog(), precision="bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for user in USERS:
        got, expected = rounded.logits(user), exact.logits(user)
        assert np.abs(got - expected).max() < 0.15 * expected.std() + 0.15
        assert not np.array_equal(got, expected)


def test_a_score_is_the_calibrated_sigmoid_of_logit_and_biases():
    bias = np.linspace(-1, 1, N_ITEMS)
    scorer = Scorer(segmented("layer", 2), catalog(), calibration=Calibration(2.0, -0.5), item_bias=bias)
    logits = scorer.logits(USERS[0])
    expected = 1 / (1 + np.exp(-(2.0 * (logits + bias + 0.25) - 0.5)))
    np.testing.assert_allclose(scorer.score(USERS[0], user_bias=0.25), expected, rtol=1e-12)
    index = np.array([8, 1])
    subset = scorer.score(USERS[0], user_bias=0.25, items=index)
    np.testing.assert_allclose(subset, expected[index], rtol=1e-5)


def test_no_items_have_no_logits():
    scorer = Scorer(segmented("full", 2), catalog())
    assert scorer.logits(USERS[0], items=np.array([], dtype=np.intp)).shape == (0,)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_a_probability_is_finite_in_the_unit_interval_and_keeps_the_order(values):
    logits = np.sort(np.array(values))
    found = Calibration(3.0, 1.0).probability(logits)
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found) >= 0).all()


def test_small_probabilities_stay_apart():
    found = Calibration().probability(np.array([-60.0, -50.0, -40.0, 0.0]))
    np.testing.assert_allclose(found, [np.exp(-60.0), np.exp(-50.0), np.exp(-40.0), 0.5], rtol=1e-12)


@given(
    scores=st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=30),
    n=st.integers(1, 40),
    allowed=st.none() | st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_the_best_are_those_of_a_full_sort_with_ties_by_place(scores, n, allowed):
    is_allowed = None if allowed is None else np.array(allowed[: len(scores)])
    places = [place for place in range(len(scores)) if is_allowed is None or is_allowed[place]]
    expected = sorted(places, key=lambda place: (-scores[place], place))[:n]
    assert best(np.array(scores), n, allowed=is_allowed).tolist() == expected


def test_a_list_is_shorter_when_fewer_items_are_allowed():
    assert best(np.array([0.1, 0.9, 0.5]), 5, allowed=np.array([True, False, True])).tolist() == [2, 0]
    assert best(np.array([0.1]), 5, allowed=np.array([False])).tolist() == []


@pytest.mark.parametrize(("join", "join_layer"), [form for form in FORMS if form[0] != "full"])
def test_item_states_keep_nothing_alive_that_they_do_not_hold(join, join_layer, monkeypatch):
    """Of one block: joining several would copy what is kept of each."""
    kept = []
    monkeypatch.setattr(module, "concatenated", lambda blocks: kept.extend(blocks) or blocks[0])
    Scorer(segmented(join, join_layer), catalog()).encode(catalog())
    for part in kept[0].parts():
        assert part.untyped_storage().nbytes() == part.numel() * part.itemsize
