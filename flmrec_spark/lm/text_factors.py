"""Factors of an item that training has not met, from its text.

    x_i                  = mean of the language model's word embeddings over the item's tokens           (D,)
    (vectors, offsets)_i = x_i A + b                                                             (F + kinds,)

A and b are ridge regressions over the items that training has met, one of the vectors and one of each offset. An item
with n interactions weighs n / (n + 20), as the factors of a rare one are mostly noise; the penalty is the one with the
least leave-one-out error (generalised cross-validation: Golub, Heath and Wahba 1979). To a rating's offset belongs the
item's bias term, which a new item lacks too.

Of a rare item the text tells more than its few interactions do, so the rating vectors of a known item are a mean of
both,

    n / (n + 20) learned + 20 / (n + 20) by the text,

where the text speaks by regressions that have not met the item: those over four fifths of the items, it not among them.

In fine-tuning the factors of some items are hidden, as those of new ones are (`terms`). They are shown as an item's
would be that the regressions have not met.

Shapes: N items, D numbers of a word embedding, F of all factors of an item.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from flmrec_spark.lm.collaborative import RATING, Collaborative, Floats, ItemFactors, Places
from flmrec_spark.lm.mean_embeddings import features
from flmrec_spark.lm.text_map import TextMap
from flmrec_spark.lm.token_block import TokenBlock

_FEWEST = 20  # items below which nothing is learned
_MOST = 20_000  # items that are learned from: those with the most interactions
_TRUST = 20.0  # interactions of an item that weighs one half
_FOLDS = 5
_PENALTIES = np.logspace(-2, 5, 15)  # of features of variance 1


def of_items(found: Collaborative, ids: pa.Array, tokens: TokenBlock, model: Any) -> ItemFactors:
    """The factors of a catalogue of N ids and tokens, those of new items by what their words say."""
    return found.of_items(found.places(ids), partial(features_of, model, tokens))


def features_of(model: Any, tokens: TokenBlock, rows: Places) -> Floats:
    """As `features` of some rows, by the word embeddings of a SegmentedModel."""
    return features(model.backbone.get_input_embeddings().weight.detach().float().cpu().numpy(), tokens.take(rows))


def leaning(target: Floats, says: Floats, counts: Floats) -> Floats:
    """Vectors (N, d) of items with `counts` (N,) interactions, drawn to what their texts say (N, d)."""
    share = (counts / (counts + _TRUST))[:, None]
    return np.asarray(share * target + (1 - share) * says, dtype=np.float32)


@dataclass(frozen=True)
class Learned:
    """The map for new items, and what it says of each item of the catalogue as if that were new."""

    texts: TextMap
    vectors: Floats  # (N, F)
    offsets: Floats  # (N, kinds)


def learn(
    features_of_rows: Callable[[Places], Floats], items: ItemFactors, *, item_bias: Floats, counts: Floats
) -> Learned | None:
    """Regressions from the features of a catalogue of N items to its factors.

    Args:
      features_of_rows: rows (M,) of the N -> (M, D).
      items: those that are new teach nothing.
      item_bias: (N,) bias terms.
      counts: (N,) interactions.

    Returns:
      None with less than 20 items to learn from.
    """
    from sklearn.linear_model import Ridge, RidgeCV  # here: a second, and what scores learns nothing

    known = np.flatnonzero(~items.is_new & (counts > 0))
    if len(known) < _FEWEST:
        return None
    known = np.sort(known[np.argsort(-counts[known], kind="stable")[:_MOST]])
    own_features = features_of_rows(known)
    mean, scale = own_features.mean(0), own_features.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    x, weights = (own_features - mean) / scale, (counts / (counts + _TRUST))[known]
    fold_of = np.random.default_rng(1).permutation(len(known)) % _FOLDS
    columns, biases, unmet = [], [], []
    for target in _targets(items, item_bias):
        own = target[known]
        whole = RidgeCV(alphas=_PENALTIES).fit(x, own, sample_weight=weights)
        columns.append(np.reshape(whole.coef_, (own.shape[1], -1)).T / scale[:, None])
        biases.append(np.reshape(whole.intercept_, -1) - mean @ columns[-1])
        unmet.append(np.zeros_like(own))
        for fold in range(_FOLDS):
            others, left = fold_of != fold, fold_of == fold
            part = Ridge(alpha=whole.alpha_).fit(x[others], own[others], sample_weight=weights[others])
            unmet[-1][left] = np.reshape(part.predict(x[left]), (-1, own.shape[1]))
    texts = TextMap(np.hstack(columns).astype(np.float32), np.concatenate(biases).astype(np.float32))
    says = texts.says(features_of_rows, np.arange(len(counts)))
    says[known] = np.hstack(unmet)
    n = items.vectors.shape[1]
    return Learned(texts, says[:, :n], says[:, n:])


def _targets(items: ItemFactors, item_bias: Floats) -> list[Floats]:
    """The vectors of all kinds together, then the offset of each."""
    offsets = items.offsets.copy()
    if RATING in items.spans:
        offsets[:, list(items.spans).index(RATING)] += item_bias
    return [items.vectors, *(offsets[:, [kind]] for kind in range(offsets.shape[1]))]
