"""Every family in its segmented form against the stock transformers model: same mask, same numbers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flmrec_spark.errors import ConfigError
from flmrec_spark.lm import training
from flmrec_spark.lm.families.registry import FAMILIES as KNOWN
from flmrec_spark.lm.model import Segment, SegmentedModel
from flmrec_spark.lm.precision import can_pack
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.token_block import TokenBlock
from tests.stock import stock_pair
from tests.tiny import DECODERS, ENCODER_DECODERS, FAMILIES, FULL_ONLY, SEGMENTED, tiny_family

N_LAYERS, ITEM_POSITION, ITEM_TOKENS = 3, 20, 8
FORMS = [("layer", layer) for layer in range(N_LAYERS + 1)] + [("attention", N_LAYERS - 1), ("full", 0)]
USERS = [[5, 6, 7, 8], [9], [40, 41, 42, 43, 44, 45, 46]]
ITEMS = [[5, 9, 11], [12], [30, 31, 32, 33, 34, 35, 36, 37], [8, 8]]


@cache
def segmented(family: str, join: str, join_layer: int) -> SegmentedModel:
    model = SegmentedModel(
        tiny_family(family), join=join, join_layer=join_layer, item_position=ITEM_POSITION, item_tokens=ITEM_TOKENS
    ).eval()
    generator = torch.Generator().manual_seed(7)
    for weight in (model.rating.item_weight, model.rating.user_weight):
        weight.data.normal_(generator=generator)
    model.rating.dot.data.fill_(0.5)
    return model


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Padded with token 9, which must not be seen."""
    width = max(map(len, rows))
    return torch.tensor([row + [9] * (width - len(row)) for row in rows]), torch.tensor([len(row) for row in rows])


def logits(model: SegmentedModel, users: list[list[int]], items: list[list[int]]) -> Tensor:
    """(U, I) logits, all users and items in one padded batch."""
    if model.join == "full":
        pairs = [(user, item) for user in users for item in items]
        user_ids, item_ids = padded([user for user, _ in pairs]), padded([item for _, item in pairs])
        return model.rating(*model.pair(Segment(*user_ids), Segment(*item_ids))).view(len(users), len(items))
    grid = torch.arange(len(items)).expand(len(users), -1)
    return model.join_items(model.encode_users(*padded(users)), model.encode_items(*padded(items)), grid)


def block(items: list[list[int]]) -> TokenBlock:
    ids, lengths = padded(items)
    return TokenBlock(ids.numpy().astype(np.int32), lengths.numpy().astype(np.int32))


def score_place(family: str) -> int:
    return -1 if family in DECODERS or family in ENCODER_DECODERS else 0


def test_every_known_type_has_a_tiny_model_here():
    assert set(FAMILIES) == set(KNOWN)


segments = st.lists(st.integers(min_value=5, max_value=60), min_size=1, max_size=ITEM_TOKENS)
prefixes = st.lists(st.integers(min_value=5, max_value=60), min_size=1, max_size=ITEM_POSITION)


@pytest.mark.parametrize("join_layer", range(N_LAYERS + 1))
@pytest.mark.parametrize("family", SEGMENTED)
@settings(max_examples=5)
@given(users=st.lists(prefixes, min_size=1, max_size=3), items=st.lists(segments, min_size=1, max_size=3))
@torch.inference_mode()
def test_a_padded_batch_equals_the_stock_layers_on_each_pair(family, join_layer, users, items):
    model = segmented(family, "layer", join_layer)
    expected = torch.zeros(len(users), len(items))
    for row, user in enumerate(users):
        for column, item in enumerate(items):
            own, other = stock_pair(model.backbone, user, item, join_layer=join_layer, item_position=ITEM_POSITION)
            expected[row, column] = model.rating(other[score_place(family)], own.mean(0))
    torch.testing.assert_close(logits(model, users, items), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [name for name in DECODERS if name != "gpt2"])
@torch.inference_mode()
def test_a_rotary_decoder_joined_from_the_first_layer_is_the_stock_model_on_the_plain_text(family):
    model = segmented(family, "layer", 0)
    for user in USERS:
        for item in ITEMS:
            hidden = model.backbone(torch.tensor([user + item])).last_hidden_state[0]
            expected = model.rating(hidden[-1], hidden[: len(user)].mean(0))
            torch.testing.assert_close(logits(model, [user], [item])[0, 0], expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_gpt2_is_the_stock_model_on_the_plain_text_where_the_user_fills_its_budget():
    model, user = segmented("gpt2", "layer", 0), list(range(10, 10 + ITEM_POSITION))
    for item in ITEMS:
        hidden = model.backbone(torch.tensor([user + item])).last_hidden_state[0]
        expected = model.rating(hidden[-1], hidden[:ITEM_POSITION].mean(0))
        torch.testing.assert_close(logits(model, [user], [item])[0, 0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@torch.inference_mode()
def test_t5_joined_from_the_first_layer_is_the_stock_model(family):
    model = segmented(family, "layer", 0)
    for user in USERS:
        for item in ITEMS:
            output = model.backbone(input_ids=torch.tensor([user]), decoder_input_ids=torch.tensor([item]))
            expected = model.rating(output.last_hidden_state[0, -1], output.encoder_last_hidden_state[0].mean(0))
            torch.testing.assert_close(logits(model, [user], [item])[0, 0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@settings(max_examples=10)
@given(users=st.lists(prefixes, min_size=1, max_size=3), items=st.lists(segments, min_size=1, max_size=3))
@torch.inference_mode()
def test_the_full_t5_is_the_stock_model_on_the_plain_prompt(family, users, items):
    """The user's end mark stands behind the item, whose first token is the decoder's."""
    model = segmented(family, "full", 0)
    expected = torch.zeros(len(users), len(items))
    for row, user in enumerate(users):
        for column, item in enumerate(items):
            prompt = torch.tensor([user[:-1] + item[1:] + user[-1:]])
            output = model.backbone(input_ids=prompt, decoder_input_ids=torch.tensor([item[:1]]))
            read = output.encoder_last_hidden_state[0]
            own = torch.cat([read[: len(user) - 1], read[-1:]])
            expected[row, column] = model.rating(output.last_hidden_state[0, 0], own.mean(0))
    torch.testing.assert_close(logits(model, users, items), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", DECODERS)
@torch.inference_mode()
def test_joined_from_the_first_layer_a_causal_model_is_its_own_reference(family):
    joined, full = segmented(family, "layer", 0), segmented(family, "full", 0)
    torch.testing.assert_close(logits(joined, USERS, ITEMS), logits(full, USERS, ITEMS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FULL_ONLY)
@torch.inference_mode()
def test_a_family_of_whole_pairs_is_the_stock_model_on_the_plain_text(family):
    model = segmented(family, "full", 0)
    expected = torch.zeros(len(USERS), len(ITEMS))
    for row, user in enumerate(USERS):
        for column, item in enumerate(ITEMS):
            hidden = model.backbone(torch.tensor([user + item])).last_hidden_state[0]
            expected[row, column] = model.rating(hidden[len(user)], hidden[: len(user)].mean(0))
    torch.testing.assert_close(logits(model, USERS, ITEMS), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FULL_ONLY)
def test_a_family_of_whole_pairs_is_refused_another_join(family):
    for join in ("layer", "attention"):
        with pytest.raises(ConfigError, match=f"model.join: got {join}, expected full: attention of type {family}"):
            segmented(family, join, N_LAYERS - 1)


@pytest.mark.parametrize("family", [*DECODERS, *ENCODER_DECODERS])
@torch.inference_mode()
def test_attention_alone_is_a_last_layer_whose_feed_forward_adds_nothing(family):
    silenced = tiny_family(family)
    if family == "gpt2":
        last = silenced.h[-1].mlp.c_proj
    elif family in DECODERS:
        last = silenced.layers[-1].mlp.down_proj
    else:
        last = silenced.decoder.block[-1].layer[-1].DenseReluDense.wo
    for parameter in last.parameters():
        parameter.zero_()
    forms = {"layer": silenced, "attention": tiny_family(family)}
    found = []
    for join, backbone in forms.items():
        model = SegmentedModel(backbone, join=join, join_layer=2, item_position=ITEM_POSITION, item_tokens=ITEM_TOKENS)
        model.rating.start(torch.linspace(-1, 1, model.family.hidden), 0.3)  # without the user, who keeps all layers
        found.append(logits(model.eval(), USERS, ITEMS))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "join", "join_layer"),
    [(family, *form) for family in SEGMENTED for form in FORMS] + [(family, "full", 0) for family in FULL_ONLY],
)
@torch.inference_mode()
def test_cached_logits_of_many_equal_each_pair_alone(family, join, join_layer, tmp_path: Path):
    model = segmented(family, join, join_layer)
    alone = np.array([[float(logits(model, [user], [item])) for item in ITEMS] for user in USERS])
    scorer = Scorer(model, block(ITEMS))
    mapped = scorer
    if join != "full":
        scorer.save_states(scorer.encode(block(ITEMS)), tmp_path / "states")
        mapped = Scorer(model, block(ITEMS), states=tmp_path / "states")
    packed = Scorer(model, block(ITEMS), packed=can_pack())
    for user, expected in zip(USERS, alone, strict=True):
        for found in (scorer, mapped, packed):
            np.testing.assert_allclose(found.logits(user), expected, rtol=1e-5, atol=2e-5)
        np.testing.assert_allclose(scorer.logits(user, items=np.array([3, 0])), expected[[3, 0]], rtol=1e-5, atol=2e-5)
        np.testing.assert_allclose(scorer.pair_logits(user, block(ITEMS)), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("join_layer", range(N_LAYERS + 1))
@pytest.mark.parametrize("family", SEGMENTED)
@torch.inference_mode()
def test_items_encoded_in_buckets_of_length_have_the_logits_of_one_batch(
    family, join_layer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training, "_BUCKET_TOKENS", 2)
    model = segmented(family, "layer", join_layer)
    items = training.encode_in_buckets(model, Segment(*padded(ITEMS)))
    grid = torch.tensor([[3, 0], [1, 2], [2, 2]])
    found = model.join_items(model.encode_users(*padded(USERS)), items, grid)
    torch.testing.assert_close(found, logits(model, USERS, ITEMS).gather(1, grid), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("join_layer", [0, 1, N_LAYERS - 1, N_LAYERS])
@pytest.mark.parametrize("family", SEGMENTED)
def test_bf16_is_close(family, join_layer):
    model = segmented(family, "layer", join_layer)
    exact, rounded = Scorer(model, block(ITEMS)), Scorer(model, block(ITEMS), precision="bf16", packed=can_pack())
    got = np.array([rounded.logits(user) for user in USERS])
    expected = np.array([exact.logits(user) for user in USERS])
    assert np.abs(got - expected).max() < 0.25 * expected.std() + 0.15
    assert not np.array_equal(got, expected)


@pytest.mark.parametrize("family", SEGMENTED)
def test_gradients_reach_every_weight_that_the_score_depends_on(family):
    backbone = tiny_family(family)
    model = SegmentedModel(backbone, join="layer", join_layer=1, item_position=ITEM_POSITION, item_tokens=ITEM_TOKENS)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.autocast("cpu", torch.bfloat16):  # as a training in bf16 does
        found = logits(model, USERS, ITEMS)
    found.sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    unread = ("backbone.decoder.block.0.layer.1.", "backbone.pooler.")  # T5's cross-attention below the join
    assert {name for name in without if not name.startswith(unread)} == set()
