"""Texts as the mean of a vector of each of their tokens."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flmrec_spark.lm.token_block import TokenBlock

Floats = npt.NDArray[np.float32]

_BLOCK = 1024  # texts whose words are looked up at once


def features(embeddings: Floats, tokens: TokenBlock) -> Floats:
    """Mean embedding (V, D) of each item's tokens; the place of the collaborative token is none: (N, D) float32."""
    found = np.zeros((len(tokens), embeddings.shape[1]), dtype=np.float32)
    for start in range(0, len(tokens), _BLOCK):
        part = tokens.part(start, start + _BLOCK)
        is_word = (np.arange(part.ids.shape[1]) < part.lengths[:, None]) & (part.ids >= 0)
        n_words = is_word.sum(1)
        some = np.flatnonzero(n_words)
        first = np.cumsum(n_words[some]) - n_words[some]
        sums = np.add.reduceat(embeddings[part.ids[is_word]], first, axis=0) if len(some) else found[:0]
        found[start + some] = sums / n_words[some, None]
    return found
