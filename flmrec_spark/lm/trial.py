"""Which number format to score in: the fastest product here whose lists of a few users are not significantly worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from flmrec_spark.lm import judge, precision, worker
from flmrec_spark.lm.judge import Judge, Rules
from flmrec_spark.lm.kernels import can_quantize
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.segments import UserSegment

ITEMS = 256  # scored of each user, drawn by a seed: lists of a tenth of them say enough of the order
_SEED = 1


@dataclass(frozen=True)
class Asked:
    """A user: the segment, and the history, newest first, as places in the catalogue."""

    user_id: str
    segment: UserSegment
    history: Any  # int (H,), -1 for an item that has left the catalogue
    is_liked: Sequence[bool]  # (H,)
    values: Sequence[float | None]  # (H,) what each interaction was worth


@dataclass(frozen=True)
class Choice:
    """The format and why it was taken."""

    precision: str
    reason: str


def choose(folder: Path, users: Sequence[Asked], *, n: int, packed: bool, device: str) -> Choice:
    """Times one product per format and compares lists of the faster ones with float32's.

    Args:
      folder: an unpacked bundle.
      users: none leaves float32.
      n: length of the lists, at most a tenth of the items that are compared.
    """
    kernel = worker.kernel_of(folder, device)
    measured = precision.rates(device, kernel)
    told = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in measured.items())
    names = list(precision.faster(measured))
    if not names or not users:
        return Choice(precision.EXACT, f"{told}: {'no users to compare lists of' if names else 'none is faster'}")
    sample = _Sample(folder, users, {"packed": packed and device == "cpu", "device": device, "kernel": kernel})
    if "int8" in names and not can_quantize(sample.model.backbone):
        names.remove("int8")
        told += "; int8 none of the model's layers"
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

    def __init__(self, folder: Path, users: Sequence[Asked], means: dict[str, Any]) -> None:
        found, catalogue = worker.opened(folder)
        self.rules = Rules.of(found, of_train=False)
        chosen = np.sort(np.random.default_rng(_SEED).permutation(catalogue.listed)[:ITEMS])
        table, ids = catalogue.table.take(chosen), catalogue.ids.take(pa.array(chosen))
        self.bias = self.rules.item_bias(ids.to_pylist())
        self.tokens = found.segmenter().block(table[worker.TOKENS].to_pylist())
        self.model = found.model()
        self.items = self.rules.of_items(ids, self.tokens, self.model)
        if self.items is not None and self.rules.has_tokens:
            self.tokens = replace(self.tokens, factors=self.items.vectors)
        self.places = None if self.rules.factors is None else self.rules.factors.places(catalogue.ids)
        self.users, self.means = users, means

    def scores(self, name: str) -> Any:
        """float64 (U, N)."""
        scorer = Scorer(self.model, self.tokens, item_bias=self.bias, **{**self.means, "precision": name})
        own = Judge(scorer, self.rules, self.items, self.places)
        users = [(one, own.taste(one.history, one.is_liked, one.values, one.segment.profile)) for one in self.users]
        asked = [judge.Asked(one.segment.ids, one.user_id, taste) for one, taste in users]
        return np.stack([said.score for said in own.says_each(asked)])
