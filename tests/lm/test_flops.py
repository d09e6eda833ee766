"""The formula against torch's own counter of what the model runs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flmrec_spark.lm.flops import Shape, item_flops, pair_flops, shape_of, user_flops
from flmrec_spark.lm.model import Segment, SegmentedModel
from tests.tiny import tiny_bert, tiny_family

N_USER, N_ITEM, N_ITEMS = 9, 5, 7
HIDDEN, INNER, N_LAYERS = 32, 64, 3
FORMS = [("layer", layer) for layer in range(N_LAYERS + 1)] + [("attention", N_LAYERS - 1)]


def segmented(join: str, join_layer: int) -> SegmentedModel:
    return SegmentedModel(tiny_bert(), join=join, join_layer=join_layer, item_position=20, item_tokens=8).eval()


def shape(join: str, join_layer: int) -> Shape:
    return shape_of(tiny_bert().config, join=join, join_layer=join_layer)


def counted(work: object, *given: torch.Tensor) -> tuple[float, object]:
    with (
        FlopCounterMode(display=False) as counter,
        torch.inference_mode(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        result = work(*given)  # type: ignore[operator]
    return float(counter.get_total_flops()), result


def test_a_shape_has_the_parameters_of_one_layer() -> None:
    found = shape("layer", 2)
    assert (found.n_layers, found.hidden, found.attention) == (N_LAYERS, HIDDEN, HIDDEN)
    assert (found.query, found.key_value, found.out) == (HIDDEN**2, 2 * HIDDEN**2, HIDDEN**2)
    assert (found.feed_forward, found.layer) == (2 * HIDDEN * INNER, 4 * HIDDEN**2 + 2 * HIDDEN * INNER)


@pytest.mark.parametrize(("join", "join_layer"), FORMS)
def test_users_items_and_pairs_cost_what_the_model_runs(join: str, join_layer: int) -> None:
    model, own = segmented(join, join_layer), shape(join, join_layer)
    user = torch.full((1, N_USER), 7), torch.tensor([N_USER])
    items = torch.full((N_ITEMS, N_ITEM), 7), torch.full((N_ITEMS,), N_ITEM)
    of_user, users = counted(model.encode_users, *user)
    assert of_user == user_flops(own, N_USER)
    of_items, states = counted(model.encode_items, *items)
    # The model projects every token of the joined layer; of the last one only the score token's Q is kept.
    assert of_items == pytest.approx(N_ITEMS * item_flops(own, N_ITEM), rel=0.1)
    of_pairs, _ = counted(model.join_items, users, states, torch.arange(N_ITEMS)[None])  # type: ignore[arg-type]
    expected = N_ITEMS * pair_flops(own, N_USER, N_ITEM)
    # Between the layers the counter also sees Q of every token, of which the last layer needs one.
    spare = 2 * HIDDEN**2 * (N_ITEM - 1) * N_ITEMS if join_layer < N_LAYERS - 1 else 0
    if join_layer == N_LAYERS:
        assert of_pairs == 0  # torch's counter passes over products with a vector, such as the head
        assert expected == 2 * HIDDEN * N_ITEMS
    else:
        assert of_pairs == expected + spare


def test_the_stock_pair_costs_every_layer_of_both_segments() -> None:
    model, own = segmented("full", 2), shape("full", 2)
    ids, lengths = torch.full((1, N_USER), 7), torch.tensor([N_USER])
    got, _ = counted(model.pair, Segment(ids, lengths), Segment(torch.full((1, N_ITEM), 7), torch.tensor([N_ITEM])))
    assert got == pair_flops(own, N_USER, N_ITEM)
    assert (user_flops(own, N_USER), item_flops(own, N_ITEM)) == (0.0, 0.0)


def test_the_published_count_of_a_shared_prefix_bounds_join_layer_0() -> None:
    """2 n S + 4 L a S (P + S) per pair, n over all layers: join_layer 0 saves parts of its first and last layer."""
    own = shape("layer", 0)
    whole = 2 * own.layer * N_LAYERS * N_ITEM + 4 * N_LAYERS * own.attention * N_ITEM * (N_USER + N_ITEM)
    assert 0.5 * whole < pair_flops(own, N_USER, N_ITEM) < whole


@pytest.mark.parametrize("n_decoder", [2, 4])
def test_users_cost_the_encoder_and_items_and_pairs_the_decoder(n_decoder: int) -> None:
    """Of a T5 whose stacks differ, against those of one depth."""
    config = tiny_family("t5", n_layers=n_decoder).config
    config.num_layers = 6 - n_decoder

    def of(join: str, join_layer: int, **depths: int) -> tuple[float, float, float]:
        own = shape_of(config.__class__(**{**config.to_dict(), **depths}), join=join, join_layer=join_layer)
        return user_flops(own, N_USER), item_flops(own, N_ITEM), pair_flops(own, N_USER, N_ITEM)

    pairs = []
    for join_layer in range(n_decoder + 1):
        user, *rest = of("layer", join_layer)
        assert rest == list(of("layer", join_layer, num_layers=n_decoder)[1:])
        assert user == of("layer", join_layer, num_decoder_layers=config.num_layers)[0]
        pairs.append(rest[1])
    assert pairs == sorted(pairs, reverse=True) and pairs[-1] == 2 * config.d_model
    assert of("full", 0) == of("full", 0, num_decoder_layers=config.num_layers)  # the encoder reads the whole pair
