"""The segmented model against the stock one: same mask, same numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flmrec_spark.errors import ConfigError
from flmrec_spark.lm.model import Segment, SegmentedModel
from tests.tiny import tiny_bert

N_LAYERS = 3
ITEM_POSITION = 20
ITEM_TOKENS = 8


def segmented(*, join: str = "layer", join_layer: int = N_LAYERS - 1) -> SegmentedModel:
    model = SegmentedModel(
        tiny_bert(), join=join, join_layer=join_layer, item_position=ITEM_POSITION, item_tokens=ITEM_TOKENS
    ).eval()
    generator = torch.Generator().manual_seed(7)
    for weight in (model.rating.item_weight, model.rating.user_weight):
        weight.data.normal_(generator=generator)
    return model


def stock_logit(model: SegmentedModel, user: list[int], item: list[int]) -> float:
    """One unpadded pair through the stock layers, each with the 4-D mask that the design gives it."""
    backbone = model.backbone
    n_user, n_item = len(user), len(item)
    positions = torch.cat([torch.arange(n_user), ITEM_POSITION + torch.arange(n_item)])[None]
    segments = torch.tensor([[0] * n_user + [1] * n_item])
    hidden = backbone.embeddings(torch.tensor([user + item]), token_type_ids=segments, position_ids=positions)
    for layer, block in enumerate(backbone.encoder.layer):
        mask = torch.full((n_user + n_item, n_user + n_item), -torch.inf)
        mask[:n_user, :n_user] = 0
        mask[n_user:, n_user:] = 0
        if layer >= model.join_layer:
            mask[n_user:, :n_user] = 0
        if model.join == "full":
            mask[:] = 0
        result = block(hidden, mask[None, None])
        output = result[0] if isinstance(result, tuple) else result
        if model.join == "attention" and layer == N_LAYERS - 1:
            output = _without_feed_forward(block, hidden, mask, output, n_user)
        hidden = output
    states = hidden[0]
    return float(model.rating(states[n_user], states[:n_user].mean(0)))


def _without_feed_forward(block, hidden: Tensor, mask: Tensor, output: Tensor, n_user: int) -> Tensor:
    attended = block.attention(hidden, mask[None, None])[0]
    return torch.cat([output[:, :n_user], attended.view_as(output)[:, n_user:]], dim=1)


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Padded with token 9, which must not be seen."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [9] * (width - len(row)) for row in rows])
    return ids, torch.tensor([len(row) for row in rows])


def model_logits(model: SegmentedModel, users: list[list[int]], items: list[list[int]]) -> Tensor:
    """(U, I) logits, all users and items in one padded batch."""
    if model.join == "full":
        pairs = [(user, item) for user in users for item in items]
        user_ids, item_ids = padded([user for user, _ in pairs]), padded([item for _, item in pairs])
        return model.rating(*model.pair(Segment(*user_ids), Segment(*item_ids))).view(len(users), len(items))
    grid = torch.arange(len(items)).expand(len(users), -1)
    return model.join_items(model.encode_users(*padded(users)), model.encode_items(*padded(items)), grid)


segments = st.lists(st.integers(min_value=5, max_value=60), min_size=1, max_size=ITEM_TOKENS)
prefixes = st.lists(st.integers(min_value=5, max_value=60), min_size=1, max_size=ITEM_POSITION)
FORMS = [("layer", layer) for layer in range(N_LAYERS + 1)] + [("attention", N_LAYERS - 1), ("full", N_LAYERS - 1)]


@pytest.mark.parametrize(("join", "join_layer"), FORMS)
@settings(max_examples=10, deadline=None)
@given(
    users=st.lists(prefixes, min_size=1, max_size=3),
    items=st.lists(segments, min_size=1, max_size=4),
)
@torch.inference_mode()
def test_a_padded_batch_equals_the_stock_model_on_each_pair(join, join_layer, users, items):
    model = segmented(join=join, join_layer=join_layer)
    got = model_logits(model, users, items)
    expected = torch.tensor([[stock_logit(model, user, item) for item in items] for user in users])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_join_layer_zero_is_the_stock_model_with_one_4d_mask():
    model = segmented(join_layer=0)
    user, item = [5, 6, 7, 8], [9, 10, 11]
    mask = torch.zeros(1, 1, 7, 7)
    mask[..., :4, 4:] = -torch.inf
    output = model.backbone(
        torch.tensor([user + item]),
        attention_mask=mask,
        token_type_ids=torch.tensor([[0] * 4 + [1] * 3]),
        position_ids=torch.tensor([[0, 1, 2, 3, ITEM_POSITION, ITEM_POSITION + 1, ITEM_POSITION + 2]]),
    ).last_hidden_state[0]
    expected = model.rating(output[4], output[:4].mean(0))
    torch.testing.assert_close(model_logits(model, [user], [item])[0, 0], expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_items_do_not_change_what_a_user_is():
    model = segmented()
    alone = model_logits(model, [[5, 6, 7]], [[8, 9]])
    among = model_logits(model, [[5, 6, 7], [40, 41, 42, 43, 44]], [[8, 9], [10, 11, 12, 13]])
    torch.testing.assert_close(alone[0, 0], among[0, 0], rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_the_join_layer_decides_whether_the_history_reaches_the_item():
    towers, joined = segmented(join_layer=N_LAYERS), segmented(join_layer=N_LAYERS - 1)
    for model in (towers, joined):
        model.rating.user_weight.data.zero_()
        model.rating.dot.data.zero_()  # only attention could carry the user to the item now
    users = [[5, 6, 7], [50, 51, 52]]
    apart = model_logits(towers, users, [[8, 9]])
    together = model_logits(joined, users, [[8, 9]])
    torch.testing.assert_close(apart[0], apart[1], rtol=1e-6, atol=1e-6)
    assert abs(float(together[0, 0] - together[1, 0])) > 1e-3


def test_gradients_reach_every_weight_that_the_score_depends_on():
    model = segmented(join_layer=1).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model_logits(model, [[5, 6, 7]], [[8, 9], [10, 11]]).sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


def test_a_join_layer_beyond_the_last_is_refused():
    with pytest.raises(ConfigError, match=r"model.join_layer: got 4, expected 0 .. 3"):
        segmented(join_layer=4)


def test_more_positions_than_the_model_has_are_refused():
    with pytest.raises(ConfigError, match=r"user_tokens \+ item_tokens = 129, expected at most the model's 128"):
        SegmentedModel(tiny_bert(), join="layer", join_layer=2, item_position=120, item_tokens=9)
