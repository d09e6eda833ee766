"""Which number format to score in: the fastest product here whose lists of a few users are not significantly worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flmrec_spark.lm import precision, worker
from flmrec_spark.lm.scorer import Scorer

ITEMS = 256  # scored of each user, drawn by a seed: lists of a tenth of them say enough of the order
_SEED = 1


@dataclass(frozen=True)
class Choice:
    """The format and why it was taken."""

    precision: str
    reason: str


def choose(folder: Path, users: Sequence[list[int]], *, n: int, packed: bool, device: str) -> Choice:
    """Times one product per format and compares lists of the faster ones with float32's.

    Args:
      folder: an unpacked bundle.
      users: user segments; none leaves float32.
      n: length of the lists, at most a tenth of the items that are compared.
    """
    kernel = worker.kernel_of(folder, device)
    measured = precision.rates(device, kernel)
    told = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in measured.items())
    names = list(precision.faster(measured))
    if not names or not users:
        return Choice(precision.EXACT, f"{told}: {'no users to compare lists of' if names else 'none is faster'}")
    sample = _Sample(folder, users, {"packed": packed and device == "cpu", "device": device, "kernel": kernel})
    exact = sample.scores(precision.EXACT)
    n = max(1, min(n, exact.shape[1] // 10))
    for name in names:
        found = precision.agreement(exact, sample.scores(name), n)
        told += f"; {name} lists {found.overlap:.3f} of fp32's {n} best, loses at most {found.loss_high:.1e} of likes"
        if found.is_good:
            return Choice(name, told)
    return Choice(precision.EXACT, told)


class _Sample:
    """A few users against a few items, in any format."""

    def __init__(self, folder: Path, users: Sequence[list[int]], means: dict[str, Any]) -> None:
        found, catalogue = worker.opened(folder)
        biases, self.calibration = found.biases(), found.calibration
        listed = catalogue.listed
        chosen = np.sort(np.random.default_rng(_SEED).permutation(listed)[:ITEMS])
        table = catalogue.table.take(chosen)
        self.bias = np.array([biases.item.get(item, 0.0) for item in catalogue.ids.take(chosen).to_pylist()])
        self.tokens = found.segmenter().block(table[worker.TOKENS].to_pylist())
        self.model, self.users, self.means = found.model(), users, means

    def scores(self, name: str) -> Any:
        """float64 (U, N)."""
        means = {**self.means, "precision": name}
        scorer = Scorer(self.model, self.tokens, calibration=self.calibration, item_bias=self.bias, **means)
        return np.stack([scorer.score(user) for user in self.users])
