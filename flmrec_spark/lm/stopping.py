"""When a training has learned enough: the best validation so far, and how many since were no better."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

from flmrec_spark.errors import ConfigError
from flmrec_spark.metrics import LOWER_IS_BETTER
from flmrec_spark.training_sections import FinetuneConfig, PretrainConfig

log = logging.getLogger("flmrec")

VALIDATE_EVERY = 100  # steps at most: an epoch of a large log takes hours, and a kill costs what is not yet saved

_OF_LISTS = "ndcg"


@dataclass
class Stopping:
    """Watches one metric of the validations; where that is not defined, as with one label, the lists'."""

    metric: str
    best: float | None = None
    n_worse: int = 0

    def is_best(self, metrics: Mapping[str, float]) -> bool:
        """Notes a validation; true when it is the best so far, or nothing is defined to tell it by."""
        name = self.metric
        if math.isnan(metrics[name]) and not math.isnan(metrics.get(_OF_LISTS, math.nan)):
            log.warning("finetune: %s is not defined on the valid split: it is stopped early by %s", name, _OF_LISTS)
            name = _OF_LISTS
        value = metrics[name] * (-1 if name in LOWER_IS_BETTER else 1)
        if math.isnan(value):
            log.warning("finetune: %s is not defined on the valid split: no early stopping, the last weights win", name)
        better = self.best is None or value > self.best or math.isnan(self.best)
        self.best, self.n_worse = (value, 0) if better else (self.best, self.n_worse + 1)
        return better


def expect_finite(
    part: str, loss: float, gradient: float, *, step: str, config: FinetuneConfig | PretrainConfig
) -> None:
    """Raises ConfigError where the loss of a step, or the norm of its gradient, is no number."""
    if not (math.isfinite(loss) and math.isfinite(gradient)):
        raise ConfigError(
            f"{part}: step {step} had a loss of {loss} and a gradient of {gradient}, expected numbers: the training "
            f"has diverged; lower {part}.learning_rate, which is {config.learning_rate:g}"
        )
