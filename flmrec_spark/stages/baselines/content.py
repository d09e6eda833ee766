"""Content: how near an item's text is to the texts of what the user liked.

Every item is a vector of length 1: TF-IDF of its rendered text (words, and pairs of words), or the mean last hidden
state of the untuned language model. A user is the mean of their liked items' vectors; the score is the cosine of
the two.
An item without a known word has the score 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy import sparse

from flmrec_spark.stages.baselines.world import Floats, User

MAX_WORDS = 50_000
# A word; of scripts that are written without spaces, a character.
TOKEN = r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+"


@dataclass(frozen=True)
class Content:
    vectors: Any  # (N, D), rows of length 1 or 0: CSR float64 or float32 array
    is_probability: ClassVar[bool] = False

    def scores(self, user: User) -> Floats | None:
        liked = user.liked_items
        if not len(liked):
            return None
        profile = np.asarray(self.vectors[liked].sum(axis=0), dtype=np.float64).ravel()
        length = float(np.linalg.norm(profile))
        cosine = self.vectors @ profile
        return np.asarray(cosine, dtype=np.float64) / length if length > 0 else None


def tf_idf(texts: Sequence[str]) -> Content:
    """Item texts in the order of their places."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # here: seconds to import, and not every run fits one

    vectorizer = TfidfVectorizer(token_pattern=TOKEN, ngram_range=(1, 2), sublinear_tf=True, max_features=MAX_WORDS)
    try:
        return Content(vectorizer.fit_transform(texts).tocsr())
    except ValueError:  # scikit-learn's "empty vocabulary": no text has a word
        return Content(sparse.csr_matrix((len(texts), 1)))


def embedded(vectors: Any) -> Content:
    """Any vectors (N, D), in the order of the items' places; scaled to length 1."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return Content((vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32))
