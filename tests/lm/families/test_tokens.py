"""The collaborative token of every family and form: a projection that gives a word's vector is read as that word."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from flmrec_spark.lm.model import Segment, SegmentedModel
from flmrec_spark.lm.precision import can_pack
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.segments import FACTORS
from flmrec_spark.lm.token_block import TokenBlock
from tests.lm.families.test_base import FORMS, ITEM_POSITION, ITEM_TOKENS, logits, padded
from tests.tiny import FULL_ONLY, SEGMENTED, tiny_family

WORDS = torch.tensor([21, 22, 23])  # factors are one-hot: which of these words a token is
USERS = [[5, FACTORS, 7, 8], [FACTORS], [40, FACTORS, 42, 43, 44, 45]]
ITEMS = [[5, FACTORS, 11], [FACTORS, 12], [30, FACTORS, 32, 33, 34, 35, 36, 37]]
USER_WORDS, ITEM_WORDS = [0, 1, 2], [2, 0, 1]


def with_tokens(family: str, join: str, join_layer: int) -> SegmentedModel:
    backbone = tiny_family(family)
    model = SegmentedModel(
        backbone,
        join=join,
        join_layer=join_layer,
        item_position=ITEM_POSITION,
        item_tokens=ITEM_TOKENS,
        n_factors=len(WORDS),
    ).eval()
    generator = torch.Generator().manual_seed(7)
    for weight in (model.rating.item_weight, model.rating.user_weight):
        weight.data.normal_(generator=generator)
    for token in (model.user_token, model.item_token):
        assert token is not None
        token.weight.data.copy_(backbone.get_input_embeddings().weight[WORDS].T)
        token.bias.data.zero_()
    return model


def one_hot(places: list[int]) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(places), len(WORDS)).float()


def read_as_words(rows: list[list[int]], places: list[int]) -> list[list[int]]:
    return [
        [int(WORDS[place]) if token == FACTORS else token for token in row]
        for row, place in zip(rows, places, strict=True)
    ]


def token_logits(model: SegmentedModel) -> Tensor:
    """(U, I) logits of the segments with tokens."""
    users = Segment(*padded(USERS), one_hot(USER_WORDS))
    items = Segment(*padded(ITEMS), one_hot(ITEM_WORDS))
    if model.join == "full":
        rows, columns = torch.arange(3).repeat_interleave(3), torch.arange(3).repeat(3)
        pair = users.take(rows), items.take(columns)
        return model.rating(*model.pair(*pair)).view(3, 3)
    states = model.encode_users(users.ids, users.lengths, users.factors)
    encoded = model.encode_items(items.ids, items.lengths, items.factors)
    return model.join_items(states, encoded, torch.arange(3).expand(3, -1))


@pytest.mark.parametrize(
    ("family", "join", "join_layer"),
    [(family, *form) for family in SEGMENTED for form in FORMS] + [(family, "full", 0) for family in FULL_ONLY],
)
@torch.inference_mode()
def test_a_token_is_read_as_the_word_whose_vector_it_has(family: str, join: str, join_layer: int) -> None:
    model = with_tokens(family, join, join_layer)
    expected = logits(model, read_as_words(USERS, USER_WORDS), read_as_words(ITEMS, ITEM_WORDS))
    torch.testing.assert_close(token_logits(model), expected, rtol=1e-5, atol=1e-5)
    ids, lengths = padded(ITEMS)
    items = TokenBlock(ids.numpy().astype(np.int32), lengths.numpy().astype(np.int32), one_hot(ITEM_WORDS).numpy())
    scorer = Scorer(model, items, packed=can_pack())
    for row, (user, place) in enumerate(zip(USERS, one_hot(USER_WORDS).numpy(), strict=True)):
        np.testing.assert_allclose(scorer.logits(user, factors=place), expected[row], rtol=1e-5, atol=2e-5)


def test_without_factors_a_token_is_what_training_learned_of_the_unknown() -> None:
    model = with_tokens("bert", "layer", 2)
    assert model.user_token is not None
    model.user_token.bias.data.fill_(0.25)
    ids, lengths = padded(USERS)
    found = model.encode_users(ids, lengths)
    zeros = model.encode_users(ids, lengths, torch.zeros(3, len(WORDS)))
    torch.testing.assert_close(found.pooled, zeros.pooled, rtol=0, atol=0)
    known = model.encode_users(ids, lengths, one_hot(USER_WORDS))
    assert not torch.allclose(found.pooled, known.pooled)
