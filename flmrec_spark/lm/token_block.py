"""Many segments as one padded array."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class TokenBlock:
    """Segments padded to one length. ids: int32 (N, T); lengths: int32 (N,), each in 1..T; factors: float32 (N, F)."""

    ids: Ids
    lengths: Ids
    factors: npt.NDArray[np.float32] | None = None  # what the collaborative tokens are made of

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, index: npt.NDArray[np.intp], *, in_same_width: bool = False) -> TokenBlock:
        """The rows of an index, padded to the longest among them, or as they are."""
        lengths = self.lengths[index]
        factors = None if self.factors is None else self.factors[index]
        width = self.ids.shape[1] if in_same_width else lengths.max(initial=1)
        return TokenBlock(self.ids[index, :width], lengths, factors)

    def part(self, start: int, stop: int) -> TokenBlock:
        """Rows start .. stop - 1 in the same width."""
        factors = None if self.factors is None else self.factors[start:stop]
        return TokenBlock(self.ids[start:stop], self.lengths[start:stop], factors)
