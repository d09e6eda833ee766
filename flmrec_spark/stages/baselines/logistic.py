"""Logistic regression on ids and attributes: log-odds = offset + user + item + attributes of both.

Ids and texts are one-hot, a text of several words as its words too (so `genres: Action Sci-Fi` is three features), a
number is standardised; features that fewer than two users or items have are left out. Weights are shrunk by an L2
penalty (C = 1), so that an unknown user, item or value says nothing. The title is no attribute: see content.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy import sparse

from flmrec_spark.pieces import as_text
from flmrec_spark.stages.baselines.world import Floats, User, World, feature_rows, logit

PENALTY = 1.0
MAX_ITERATIONS = 1000
MIN_COUNT, MAX_FEATURES = 2, 20_000
# A word with its hyphens; of scripts that are written without spaces, a character, as in `content`.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}](?:[^\W{_UNSPACED}]|['-])*")

Scales = Mapping[str, tuple[float, float]]  # number -> mean, standard deviation


@dataclass(frozen=True)
class Logistic:
    items: Floats  # [N] offset, id and attributes
    users: Mapping[str, float]  # user_id -> weight
    attributes: Mapping[str, float]  # feature of a user -> weight
    scales: Scales
    is_probability: ClassVar[bool] = True

    def scores(self, user: User) -> Floats:
        own = _features(feature_rows([user.fields])[0], self.scales)
        known = sum(self.attributes.get(name, 0.0) * value for name, value in own.items())
        return self.items + (self.users.get(user.user_id, 0.0) + known)


def logistic_regression(world: World, *, penalty: float = PENALTY) -> Logistic:
    from sklearn.linear_model import LogisticRegression  # here: seconds to import, and not every run fits one

    n_users, n_items = len(world.user_ids), len(world.item_ids)
    if len(np.unique(world.liked)) < 2:  # nothing tells users or items apart
        return Logistic(np.full(n_items, float(logit(world.mean))), {}, {}, {})
    users, user_names, scales = _matrix(feature_rows(world.user_fields))
    items, _, _ = _matrix(feature_rows(world.item_fields))
    features = sparse.hstack(
        [
            sparse.identity(n_users, format="csr")[world.users],
            sparse.identity(n_items, format="csr")[world.items],
            users[world.users],
            items[world.items],
        ],
        format="csr",
    )
    found = LogisticRegression(C=penalty, max_iter=MAX_ITERATIONS).fit(features, world.liked)
    weights = np.split(found.coef_[0], np.cumsum([n_users, n_items, users.shape[1]]))
    return Logistic(
        items=float(found.intercept_[0]) + weights[1] + items @ weights[3],
        users=dict(zip(world.user_ids, weights[0].tolist(), strict=True)),
        attributes=dict(zip(user_names, weights[2].tolist(), strict=True)),
        scales=scales,
    )


def _matrix(rows: Sequence[Mapping[str, Any]]) -> tuple[Any, list[str], Scales]:
    """Features of the rows, CSR float64 (rows, F), their names, and how numbers were scaled."""
    scales = _scales(rows)
    named = [_features(row, scales) for row in rows]
    counts = Counter(name for row in named for name in row)
    kept = {name for name, n in counts.most_common(MAX_FEATURES) if n >= MIN_COUNT}
    if not kept:
        return sparse.csr_matrix((len(rows), 0)), [], scales
    from sklearn.feature_extraction import DictVectorizer  # here: seconds to import, and not every run fits one

    vectorizer = DictVectorizer()
    matrix = vectorizer.fit_transform([{name: row[name] for name in row if name in kept} for row in named])
    return matrix.tocsr(), list(vectorizer.get_feature_names_out()), scales


def _scales(rows: Sequence[Mapping[str, Any]]) -> Scales:
    numbers: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if _is_number(value):
                numbers.setdefault(name, []).append(float(value))
    return {name: _scale(np.array(found)) for name, found in numbers.items()}


def _scale(values: Floats) -> tuple[float, float]:
    """Mean and standard deviation; that of equal values is 1, and not the rounding of their mean."""
    mean, deviation = float(values.mean()), float(values.std())
    return mean, deviation if deviation > 1e-9 * max(1.0, abs(mean)) else 1.0


def _features(row: Mapping[str, Any], scales: Scales) -> dict[str, float]:
    found = {}
    for name, value in row.items():
        if _is_number(value):
            mean, deviation = scales.get(name, (0.0, 1.0))
            found[name] = (float(value) - mean) / deviation
        elif text := as_text(value):
            words = sorted({f"{name}:{word}" for word in _WORD.findall(text.lower())})
            found |= dict.fromkeys(words if len(words) == 1 else [*words, f"{name}={text}"], 1.0)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
