"""Collaborative factors as the language model is trained with them, and what the texts of new items say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from flmrec_spark import columns as c
from flmrec_spark.lm import dataset, text_factors
from flmrec_spark.lm.collaborative import RATING, Collaborative, FactorsOfSplits, ItemFactors
from flmrec_spark.lm.dataset import Catalog, Examples, Floats
from flmrec_spark.lm.loading import Data
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.prepared import Prepared
from flmrec_spark.lm.profiles import Words
from flmrec_spark.lm.segments import Segmenter
from flmrec_spark.lm.text_factors import Learned
from flmrec_spark.lm.training import BiasTerms


@dataclass(frozen=True)
class TrainingFactors:
    """Factors as the language model is trained with them: of the catalogue, and tastes (R, F) of the examples."""

    items: ItemFactors
    texts: Learned | None  # what the texts of the items say of them
    train: Floats
    valid: Floats

    @classmethod
    def of(
        cls, found: Collaborative, prepared: Prepared, data: Data, model: SegmentedModel, bias: BiasTerms
    ) -> TrainingFactors:
        """Of the train split."""
        found, texts = _with_texts(found, prepared, data.catalog, model, bias, [c.TRAIN])
        known = prepared, data.catalog, data.user_ids
        train, valid = (tastes(found, data.profiles, *known, rows, [c.TRAIN]) for rows in (data.train, data.valid))
        catalog = data.catalog
        return cls(text_factors.of_items(found, catalog.ids(), catalog.tokens, model), texts, train, valid)


def with_texts_of(
    found: FactorsOfSplits,
    prepared: Prepared,
    catalog: Catalog,
    model: SegmentedModel,
    biases: tuple[BiasTerms, BiasTerms],
) -> FactorsOfSplits:
    """Both editions with what the texts of new items say of their factors; bias terms of train, and of all."""
    known = prepared, catalog, model
    return FactorsOfSplits(
        _with_texts(found.train, *known, biases[0], [c.TRAIN])[0],
        _with_texts(found.whole, *known, biases[1], [c.TRAIN, c.VALID])[0],
    )


def _with_texts(
    found: Collaborative,
    prepared: Prepared,
    catalog: Catalog,
    model: SegmentedModel,
    bias: BiasTerms,
    splits: list[str],
) -> tuple[Collaborative, Learned | None]:
    """The factors as they are served, and what the texts of the catalogue's own items say of them."""
    features = partial(text_factors.features_of, model, catalog.tokens)
    counts, _ = dataset.counts(prepared, c.ITEM_ID, catalog.item_ids, splits=splits)
    items = found.of_items(found.places(catalog.ids()))
    own = bias.item.detach().cpu().numpy()
    own = own if len(own) else np.zeros(len(counts), dtype=np.float32)  # a model without bias terms
    learned = text_factors.learn(features, items, item_bias=own, counts=counts)
    if learned is None:
        return found, None
    factors = dict(found.factors)
    if RATING in factors:
        rows, start = catalog.places(found.item_ids), items.spans[RATING][0]
        target = factors[RATING].target.copy()
        says = learned.vectors[rows, start : start + target.shape[1]]  # neighbours are shrunk by their penalty
        target[:-1] = text_factors.leaning(target[:-1], says, counts[rows])
        factors[RATING] = replace(factors[RATING], target=target)
    return replace(found, factors=factors, texts=learned.texts), learned


def tastes_of_train(found: Collaborative, segmenter: Segmenter, *, prepared: Prepared, data: Data) -> Floats:
    """Tastes (R, F) of the train examples by any factors, the profiles read by the segmenter that these belong to."""
    words = dataset.profiles(prepared, segmenter, data.user_ids, are_read=found.reads_profiles)
    return tastes(found, words, prepared, data.catalog, data.user_ids, data.train, [c.TRAIN])


def tastes(
    found: Collaborative,
    profiles: Sequence[Words],
    prepared: Prepared,
    catalog: Catalog,
    user_ids: list[str],
    rows: Examples,
    splits: list[str],
) -> Floats:
    """Tastes (R, F) of the examples' users at their moments, from the rows of the splits and the users' profiles."""
    sequences = dataset.sequences(prepared, catalog, user_ids, splits=splits, grades=found.grades)
    places = found.places(catalog.ids())
    result = np.zeros((len(rows), found.width), dtype=np.float32)
    for row, (user, moment) in enumerate(zip(rows.users.tolist(), rows.moments.tolist(), strict=True)):
        items, labels = sequences.before(user, moment, len(sequences.items))
        result[row] = found.taste(places[items], labels, profiles[user])
    return result
