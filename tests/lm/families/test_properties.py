"""What holds of every family in every form, whatever the tokens: nothing depends on the batch, its order or a cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flmrec_spark.lm import native
from flmrec_spark.lm.model import Segment, SegmentedModel
from flmrec_spark.lm.precision import can_pack
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.token_block import TokenBlock
from tests.lm.families.test_base import FORMS, padded, prefixes, segmented, segments
from tests.tiny import FULL_ONLY, SEGMENTED

MODELS = [(family, *form) for family in SEGMENTED for form in FORMS if form != ("layer", 1)] + [
    (family, "full", 0) for family in FULL_ONLY
]
NEAR = {"rtol": 1e-5, "atol": 2e-5}
lists_of_users = st.lists(prefixes, min_size=1, max_size=2)
lists_of_items = st.lists(segments, min_size=1, max_size=3)
junk = st.integers(min_value=1, max_value=60)


def wider(rows: list[list[int]], n_more: int, token: int) -> tuple[Tensor, Tensor]:
    """Padded by n_more tokens beyond the longest, with a token that must not be seen."""
    width = max(map(len, rows)) + n_more
    return torch.tensor([row + [token] * (width - len(row)) for row in rows]), torch.tensor([len(row) for row in rows])


def grid_of(model: SegmentedModel, users: tuple[Tensor, Tensor], items: tuple[Tensor, Tensor]) -> np.ndarray:
    """(U, I) logits of one batch."""
    n_users, n_items = len(users[0]), len(items[0])
    if model.join == "full":
        row, column = torch.arange(n_users).repeat_interleave(n_items), torch.arange(n_items).repeat(n_users)
        pairs = Segment(users[0][row], users[1][row]), Segment(items[0][column], items[1][column])
        return model.rating(*model.pair(*pairs)).view(n_users, n_items).numpy()
    grid = torch.arange(n_items).expand(n_users, -1)
    return model.join_items(model.encode_users(*users), model.encode_items(*items), grid).numpy()


def alone(model: SegmentedModel, users: list[list[int]], items: list[list[int]]) -> np.ndarray:
    """(U, I) logits, one pair at a time."""
    return np.array([[grid_of(model, padded([user]), padded([item]))[0, 0] for item in items] for user in users])


@pytest.mark.parametrize(("family", "join", "join_layer"), MODELS)
@settings(max_examples=2)
@given(users=lists_of_users, items=lists_of_items, n_more=st.integers(0, 3), token=junk, random=st.randoms())
@torch.inference_mode()
def test_the_batch_its_padding_and_its_order_change_nothing(
    family, join, join_layer, users, items, n_more, token, random
):
    model = segmented(family, join, join_layer)
    expected = alone(model, users, items)
    np.testing.assert_allclose(
        grid_of(model, wider(users, n_more, token), wider(items, n_more, token)), expected, **NEAR
    )
    rows, columns = list(range(len(users))), list(range(len(items)))
    random.shuffle(rows)
    random.shuffle(columns)
    shuffled = grid_of(model, padded([users[row] for row in rows]), padded([items[column] for column in columns]))
    np.testing.assert_allclose(shuffled, expected[rows][:, columns], **NEAR)


@pytest.mark.parametrize(("family", "join", "join_layer"), MODELS)
@settings(max_examples=2)
@given(users=lists_of_users, items=lists_of_items)
@torch.inference_mode()
def test_cached_equals_uncached_with_and_without_the_kernel(family, join, join_layer, users, items):
    model = segmented(family, join, join_layer)
    expected = alone(model, users, items)
    ids, lengths = padded(items)
    block = TokenBlock(ids.numpy().astype(np.int32), lengths.numpy().astype(np.int32))
    kernel = native.load(native.build())
    cached = [Scorer(model, block), Scorer(model, block, packed=can_pack(), kernel=kernel)]
    backwards = np.arange(len(items))[::-1].copy()
    for user, row in zip(users, expected, strict=True):
        np.testing.assert_allclose(cached[0].pair_logits(user, block), row, **NEAR)
        for scorer in cached:
            np.testing.assert_allclose(scorer.logits(user), row, **NEAR)
            np.testing.assert_allclose(scorer.logits(user, items=backwards), row[::-1], **NEAR)
