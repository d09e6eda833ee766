"""Item vectors against each item encoded alone, for every form that has item states, with the kernel and without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from flmrec_spark.lm import item_vectors as module
from flmrec_spark.lm import native
from flmrec_spark.lm.item_vectors import ItemVectors
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.reranking import STEPS, cosines
from tests.lm.test_scorer import FORMS, N_ITEMS, catalog, segmented

EVERY = np.arange(N_ITEMS)
WITH_STATES = [form for form in FORMS if form[0] != "full"]


@torch.inference_mode()
def alone(model: SegmentedModel) -> Any:
    """Mean state of each item's tokens, without padding, less the mean of all items, (N, D) float64."""
    tokens = catalog()
    found = []
    for row, length in enumerate(tokens.lengths.tolist()):
        item = torch.from_numpy(tokens.ids[row : row + 1, :length]).long()
        found.append(model.encode_items(item, torch.tensor([length])).hidden[0].mean(0).double().numpy())
    return np.array(found) - np.mean(found, axis=0)


@pytest.mark.parametrize("with_kernel", [False, True])
@pytest.mark.parametrize(("join", "join_layer"), WITH_STATES)
def test_a_vector_is_the_items_own_state_less_the_catalogues_mean(join, join_layer, with_kernel):
    kernel = native.load(native.build()) if with_kernel else None
    model = segmented(join, join_layer)
    scorer = Scorer(model, catalog(), kernel=kernel)
    vectors = ItemVectors(scorer).of(EVERY)
    expected = alone(model)
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(vectors - STEPS * expected / lengths).max() < 1.0
    assert np.abs(cosines(vectors) - (expected / lengths) @ (expected / lengths).T).max() < 2e-3


@pytest.mark.parametrize(("join", "join_layer"), WITH_STATES)
def test_blocks_and_the_items_asked_with_it_change_no_bit(join, join_layer, monkeypatch):
    scorer = Scorer(segmented(join, join_layer), catalog())
    whole = ItemVectors(scorer).of(EVERY)
    monkeypatch.setattr(module, "_BLOCK", 4)
    in_blocks = ItemVectors(scorer)
    some = np.array([7, 0, 10])
    assert (in_blocks.of(some) == whole[some]).all()
    assert (in_blocks.of(EVERY) == whole).all()


@pytest.mark.parametrize(("join", "join_layer"), WITH_STATES)
def test_no_more_tokens_than_a_block_are_looked_at_together(join, join_layer, monkeypatch):
    scorer = Scorer(segmented(join, join_layer), catalog())
    whole = ItemVectors(scorer).of(EVERY)
    own, sizes = Scorer.item_hidden, list[int]()

    def item_hidden(self: Scorer, items: Any) -> Any:
        found = own(self, items)
        sizes.append(found[0].shape[0] * found[0].shape[1])
        return found

    monkeypatch.setattr(Scorer, "item_hidden", item_hidden)
    monkeypatch.setattr(module, "_BLOCK", 17)
    in_blocks = ItemVectors(scorer)
    assert (in_blocks.of(EVERY) == whole).all()
    assert max(sizes) <= 17
    assert in_blocks.of(EVERY[:0]).shape == (0, whole.shape[1])
    monkeypatch.setattr(module, "_BLOCK", 1)
    assert (ItemVectors(scorer).of(EVERY) == whole).all()
