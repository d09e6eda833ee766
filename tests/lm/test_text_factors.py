"""Factors of new items from their texts: features by hand, regressions by their definition, and what is served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.linear_model import Ridge

from flmrec_spark import columns as c
from flmrec_spark.errors import CheckpointError
from flmrec_spark.lm import checkpoint, dataset, factor_files, mean_embeddings, text_factors
from flmrec_spark.lm.collaborative import LISTING, RATING, Collaborative, Factors, ItemFactors
from flmrec_spark.lm.finetuning import finetune
from flmrec_spark.lm.judge import Rules
from flmrec_spark.lm.loading import load_data
from flmrec_spark.lm.prepared import read_tables
from flmrec_spark.lm.segments import FACTORS
from flmrec_spark.lm.terms import Terms
from flmrec_spark.lm.text_map import TextMap
from flmrec_spark.lm.token_block import TokenBlock
from flmrec_spark.lm.trainer import Trainer
from flmrec_spark.lm.training import BiasTerms
from tests.lm.test_factor_stage import with_factors
from tests.prepared import prepared_rows, write_prepared

N, D, WIDTH = 60, 3, 2


def test_a_feature_is_the_mean_of_the_words_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mean_embeddings, "_BLOCK", 2)
    embeddings = np.array([[9, 9], [1, 0], [0, 2], [4, 4]], dtype=np.float32)
    ids = np.array([[1, 2, 0], [FACTORS, 3, 3], [FACTORS, 0, 0], [2, 2, 1], [3, 0, 0]], dtype=np.int32)
    tokens = TokenBlock(ids, np.array([2, 3, 1, 3, 1], dtype=np.int32))
    expected = [[0.5, 1], [4, 4], [0, 0], [1 / 3, 4 / 3], [4, 4]]
    np.testing.assert_allclose(mean_embeddings.features(embeddings, tokens), expected, rtol=1e-6)


def linear(seed: int = 0, noise: float = 0.1) -> tuple[np.ndarray, ItemFactors, np.ndarray, np.ndarray]:
    """Features, factors that are linear in them but for noise, bias terms, counts; the last ten items are new."""
    random = np.random.default_rng(seed)
    features = (random.normal(size=(N, D)) * [1, 10, 0.1]).astype(np.float32)
    standard = (features - features.mean(0)) / features.std(0)
    vectors = standard @ random.normal(size=(D, WIDTH)) + 1 + noise * random.normal(size=(N, WIDTH))
    offsets = np.stack([standard[:, 0], standard[:, 1]], axis=1) + noise * random.normal(size=(N, 2))
    is_new = np.arange(N) >= N - 10
    vectors[is_new], offsets[is_new] = 0, -7
    items = ItemFactors(
        vectors.astype(np.float32),
        offsets.astype(np.float32),
        np.array([-7, -7], dtype=np.float32),
        {LISTING: (0, 1), RATING: (1, 2)},
        is_new,
        np.zeros(WIDTH, dtype=bool),
        np.zeros(WIDTH, dtype=np.float32),
    )
    return features, items, np.where(is_new, 0, 2 * standard[:, 2]).astype(np.float32), np.where(is_new, 0, 40.0)


def test_new_items_have_what_their_features_say_and_a_rating_offset_holds_the_bias() -> None:
    features, items, bias, counts = linear(noise=0.0)
    found = text_factors.learn(features.__getitem__, items, item_bias=bias, counts=counts.astype(np.float32))
    assert found is not None
    standard = (features - features.mean(0)) / features.std(0)
    new = items.is_new
    np.testing.assert_allclose(found.offsets[new, 0], standard[new, 0], atol=0.05)
    np.testing.assert_allclose(found.offsets[new, 1], (standard[:, 1] + 2 * standard[:, 2])[new], atol=0.05)
    own = features @ found.texts.weight + found.texts.bias  # the map alone says the same of a new item
    np.testing.assert_allclose(own[new], np.hstack([found.vectors, found.offsets])[new], rtol=1e-4, atol=1e-4)


def test_what_is_said_of_a_known_item_is_not_learned_from_it() -> None:
    features, items, bias, counts = linear()
    counts = counts.astype(np.float32)
    found = text_factors.learn(features.__getitem__, items, item_bias=bias, counts=counts)
    assert found is not None
    known = np.flatnonzero(~items.is_new)
    mean, scale = features[known].mean(0), features[known].std(0)
    x, weights = (features - mean) / scale, counts / (counts + 20)
    fold_of = np.random.default_rng(1).permutation(len(known)) % 5
    for fold in range(5):  # some penalty of the list explains every item of a fold without that fold
        others, left = known[fold_of != fold], known[fold_of == fold]
        errors = []
        for penalty in np.logspace(-2, 5, 15):
            own = Ridge(alpha=penalty).fit(x[others], items.vectors[others], sample_weight=weights[others])
            errors.append(np.abs(own.predict(x[left]) - found.vectors[left]).max())
        assert min(errors) < 1e-4
    whole = features @ found.texts.weight + found.texts.bias
    assert np.abs(whole[known, :WIDTH] - found.vectors[known]).max() > 1e-3


def test_rare_items_teach_little_and_of_too_few_nothing_is_learned() -> None:
    features, items, bias, counts = linear(noise=0.0)
    wild = np.flatnonzero(~items.is_new)[:20]
    vectors = items.vectors.copy()
    vectors[wild] = 50.0
    rare = counts.astype(np.float32)
    rare[wild] = 1e-3
    spoilt = replace(items, vectors=vectors)
    clean = text_factors.learn(features.__getitem__, items, item_bias=bias, counts=counts.astype(np.float32))
    found = text_factors.learn(features.__getitem__, spoilt, item_bias=bias, counts=rare)
    even = text_factors.learn(features.__getitem__, spoilt, item_bias=bias, counts=counts.astype(np.float32))
    assert clean is not None and found is not None and even is not None
    new = items.is_new
    assert np.abs(found.vectors[new] - clean.vectors[new]).max() < 0.2
    assert np.abs(even.vectors[new] - clean.vectors[new]).max() > 5
    few = np.where(np.arange(N) < 19, counts, 0).astype(np.float32)
    assert text_factors.learn(features.__getitem__, items, item_bias=bias, counts=few) is None


def test_the_vectors_of_a_rare_item_lean_on_its_text() -> None:
    target, says = np.array([[4.0], [4.0], [4.0]], dtype=np.float32), np.array([[0.0], [2.0], [8.0]], dtype=np.float32)
    found = text_factors.leaning(target, says, np.array([0, 20, 60], dtype=np.float32))
    assert found.tolist() == [[0], [3], [5]]


def kept() -> Collaborative:
    own = Factors(
        np.ones((4, 1), dtype=np.float32),
        np.array([[1], [2], [0]], dtype=np.float32),
        np.array([5, 6, 7], dtype=np.float32),
        np.ones(2, dtype=np.float32),
        3.0,
    )
    texts = TextMap(
        np.array([[1, 0, 2, 0], [0, 1, 0, 3]], dtype=np.float32), np.array([0, 0, 0.5, -1], dtype=np.float32)
    )
    return Collaborative(pa.array(["a", "b"]), {LISTING: own, RATING: own}, 9, texts)


def test_of_a_catalogue_only_new_items_have_what_their_texts_say() -> None:
    features = np.array([[9, 9], [2, 4]], dtype=np.float32)
    items = kept().of_items(np.array([1, -1]), features.__getitem__)
    assert items.vectors.tolist() == [[2, 2], [2, 4]]
    assert items.offsets.tolist() == [[6, 6], [4.5, 11]]
    assert items.is_new.tolist() == [False, True]
    plain = replace(kept(), texts=None).of_items(np.array([1, -1]), features.__getitem__)
    assert plain.vectors.tolist() == [[2, 2], [0, 0]] and plain.offsets.tolist() == [[6, 6], [7, 7]]
    kept().of_items(np.array([0, 1]), lambda rows: pytest.fail("asked for features that no item needs"))


def test_the_map_is_saved_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    factor_files.save(tmp_path, kept())
    found = factor_files.load(tmp_path)
    assert found is not None and found.texts is not None and list(found.factors) == [LISTING, RATING]
    np.testing.assert_array_equal(found.texts.weight, kept().texts.weight)  # type: ignore[union-attr]
    np.testing.assert_array_equal(found.texts.bias, kept().texts.bias)  # type: ignore[union-attr]
    turned = TextMap(np.asfortranarray(kept().texts.weight), kept().texts.bias)  # type: ignore[union-attr]
    factor_files.save(tmp_path, replace(kept(), texts=turned))
    np.testing.assert_array_equal(factor_files.load(tmp_path).texts.weight, turned.weight)  # type: ignore[union-attr]
    wrong = TextMap(np.ones((2, 3), dtype=np.float32), np.ones(3, dtype=np.float32))
    factor_files.save(tmp_path, replace(kept(), texts=wrong))
    with pytest.raises(CheckpointError, match=r"texts.weight: got shape \(2, 3\), expected \(D, 4\)"):
        factor_files.load(tmp_path)


def test_a_hidden_item_shows_its_text_and_loses_its_bias_term() -> None:
    features, items, bias, counts = linear()
    texts = text_factors.learn(features.__getitem__, items, item_bias=bias, counts=counts.astype(np.float32))
    assert texts is not None
    torch.manual_seed(1)
    terms = Terms(items, hidden_share=0.5, texts=texts).train()
    distinct = torch.arange(N)
    shown = terms.shown(torch.ones(1, WIDTH), distinct)
    assert shown.is_shown is not None and shown.items is not None and shown.offsets is not None
    hidden = ~shown.is_shown.numpy()
    assert 10 < hidden.sum() < N - 10
    np.testing.assert_array_equal(shown.items.numpy()[hidden], texts.vectors[hidden])
    np.testing.assert_array_equal(shown.items.numpy()[~hidden], items.vectors[~hidden])
    np.testing.assert_array_equal(shown.offsets.numpy()[hidden], texts.offsets[hidden])
    grid = distinct[None]
    own = BiasTerms(np.float32([0.5]), (np.arange(N) % 9).astype(np.float32)).train()
    said = own(torch.tensor([0]), grid, 0.0, shown.bias_is_shown(grid))
    assert torch.equal(said[0], own.user[0] + own.item * shown.is_shown)
    assert terms.eval().shown(torch.ones(1, WIDTH), distinct).bias_is_shown(grid) is None


def test_an_item_that_nobody_has_met_is_served_by_its_text(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_factors, "_FEWEST", 10)
    rows = prepared_rows()
    hidden = rows["items"][0][c.ITEM_ID]
    rows["interactions"] = [row for row in rows["interactions"] if row[c.ITEM_ID] != hidden]
    for row in rows["examples"]:
        for name in (c.HISTORY, c.TARGETS):
            row[name] = [entry for entry in row[name] if entry[c.ITEM_ID] != hidden]
    write_prepared(world / "tables", rows)
    finetune(with_factors(world))
    found = checkpoint.load(world / "checkpoint")
    model, segmenter = found.model(), found.segmenter()
    tokens = segmenter.block([segment or [] for segment in segmenter.items(rows["items"])])
    ids = pa.array([row[c.ITEM_ID] for row in rows["items"]])
    for of_train in (False, True):
        items = Rules.of(found, of_train=of_train).of_items(ids, tokens, model)
        assert items is not None and items.is_new[0] and not items.is_new[1:].all()
        assert items.vectors[0].any() and not np.array_equal(items.offsets[0], items.unknown)


def test_rating_vectors_are_served_leaning_and_listing_vectors_as_they_were_learned(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_factors, "_FEWEST", 10)
    config = with_factors(world)
    prepared = read_tables(config.tables.root)
    own = Trainer(config, prepared, load_data(config, prepared))
    served = own.served_factors(prepared, own.latest_bias(prepared))
    assert served is not None and own.factors is not None and own.shown is not None and own.shown.texts is not None
    catalog, before, after = own.data.catalog, own.factors.train, served.train
    rows, (start, end) = catalog.places(before.item_ids), own.shown.items.spans[RATING]
    counts, _ = dataset.counts(prepared, c.ITEM_ID, catalog.item_ids, splits=[c.TRAIN])
    share = (counts[rows] / (counts[rows] + 20))[:, None]
    expected = share * before.factors[RATING].target[:-1] + (1 - share) * own.shown.texts.vectors[rows, start:end]
    np.testing.assert_allclose(after.factors[RATING].target[:-1], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(after.factors[LISTING].target, before.factors[LISTING].target)
    np.testing.assert_array_equal(own.shown.items.vectors[rows, start:end], after.factors[RATING].target[:-1])
