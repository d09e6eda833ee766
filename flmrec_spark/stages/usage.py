"""What the tasks of a run did and used, told by themselves through an accumulator.

Spark applies an accumulator once per task that ended well; a stage that is run again after a lost executor counts
again. So these numbers say what was computed, and what was published is counted in the tables.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pyspark import Accumulator
from pyspark.accumulators import AccumulatorParam
from pyspark.sql import SparkSession

Numbers = dict[str, float]
_SUM, _MAX = "sum:", "max:"


class _Merge(AccumulatorParam[Numbers]):
    def zero(self, value: Numbers) -> Numbers:  # noqa: ARG002  of the base class
        return {}

    def addInPlace(self, value1: Numbers, value2: Numbers) -> Numbers:
        for name, value in value2.items():
            old = value1.get(name)
            value1[name] = value if old is None else old + value if name.startswith(_SUM) else max(old, value)
        return value1


@dataclass
class Meter:
    """One task's own numbers."""

    sums: dict[str, float] = field(default_factory=dict)

    def add(self, **numbers: float) -> None:
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Adds the block's wall time to `busy_s`: waiting for rows is not work."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(busy_s=time.perf_counter() - started)


@dataclass(frozen=True)
class Usage:
    """Collects the meters of all tasks. It travels with them; read it on the driver."""

    accumulator: Accumulator[Numbers]

    @contextmanager
    def task(self) -> Iterator[Meter]:
        """A meter for the task that runs this, on an executor."""
        from flmrec_spark.lm import memory, worker

        meter, before = Meter(), worker.n_loads()
        yield meter
        peaks = memory.peaks_up_to("java")
        own = next(iter(peaks))
        told = {f"{_SUM}{name}": value for name, value in meter.sums.items()}
        told |= {f"{_MAX}peak_mb:{process}": float(value) for process, value in peaks.items()}
        told |= {f"{_SUM}tasks": 1.0, f"{_MAX}ended": time.time()}
        told[f"{_SUM}loads:{own}"] = float(worker.n_loads() - before)
        self.accumulator.add(told)

    def sums(self) -> dict[str, float]:
        """users, pairs, user_tokens, busy_s, tasks: those that any task has added to."""
        told = {name.removeprefix(_SUM): value for name, value in self._told().items() if name.startswith(_SUM)}
        return {name: value for name, value in told.items() if ":" not in name}

    def loads(self) -> dict[str, int]:
        """How many models each Python process loaded in these tasks, by host:pid; 0: it had one before."""
        return self._of(f"{_SUM}loads")

    def peaks_mb(self) -> dict[str, int]:
        """Largest resident memory of the Python processes and of their executors' JVMs in MiB, by host:pid."""
        return self._of(f"{_MAX}peak_mb")

    def last_end(self) -> float | None:
        """When the last task ended, in seconds of the epoch by its executor's clock."""
        return self._told().get(f"{_MAX}ended")

    def _of(self, kind: str) -> dict[str, int]:
        prefix = f"{kind}:"
        return {name.removeprefix(prefix): int(v) for name, v in self._told().items() if name.startswith(prefix)}

    def _told(self) -> Mapping[str, float]:
        value: Any = self.accumulator.value
        return dict(value)


def usage_of(spark: SparkSession) -> Usage:
    """A fresh collector."""
    return Usage(spark.sparkContext.accumulator({}, _Merge()))
