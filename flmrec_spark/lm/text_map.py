"""From what the text of a new item says to its collaborative factors, as `text_factors` learned it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.intp]

_BLOCK = 4096  # new items whose features are in memory at once


@dataclass(frozen=True)
class TextMap:
    """Factors of a new item from the mean embedding of its tokens, see `text_factors`."""

    weight: Floats  # (D, F + kinds)
    bias: Floats  # (F + kinds,)

    def says(self, features: Callable[[Places], Floats], rows: Places) -> Floats:
        """(len(rows), F + kinds); the features (n, D) of some rows at a time."""
        found = np.zeros((len(rows), len(self.bias)), dtype=np.float32)
        for start in range(0, len(rows), _BLOCK):
            part = slice(start, start + _BLOCK)
            found[part] = features(rows[part]) @ self.weight + self.bias
        return found
