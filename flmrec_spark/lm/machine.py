"""What a benchmark ran on: hardware, versions and measured peaks, for the JSON that every benchmark writes."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from rich.console import Console
from rich.table import Table

from flmrec_spark.lm import native
from flmrec_spark.lm.precision import rates

T = TypeVar("T", bound=Any)


def describe(device: str) -> dict[str, Any]:
    """Hardware, versions and the measured GEMM peak of each precision in GFLOP/s."""
    kernel = native.load(native.build()) if device == "cpu" else None
    return {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "peak_gflops": {name: round(rate / 1e9) for name, rate in rates(device, kernel, seconds=0.5).items()},
    }


def named(arms: Sequence[T], names: Sequence[str] | None) -> list[T]:
    """The arms (with an attribute `name`) of these names in their own order; all for None.

    Raises:
      SystemExit: with 2, for a name of none, such as a setting that stands behind `--only A B` and is taken for one.
    """
    unknown = sorted(set(names or ()) - {arm.name for arm in arms})
    if unknown:
        sys.stderr.write(f"--only: got {unknown}, expected some of {[arm.name for arm in arms]}\n")
        raise SystemExit(2)
    return [arm for arm in arms if names is None or arm.name in names]


def calls_per_second(
    work: Callable[[int], Any],
    seconds: float,
    *,
    n_threads: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Calls of work(number) per second of the clock, after one that is not counted.

    With several threads each makes calls of its own, with one thread of torch, as Spark's tasks do.
    """

    def worked(first: int) -> int:
        number = 0
        if n_threads > 1:
            torch.set_num_threads(1)
        while True:
            work(first + number)
            number += 1
            if clock() - started >= seconds:
                return number

    work(0)
    started = clock()
    if n_threads == 1:
        done = worked(0)
    else:
        with ThreadPoolExecutor(n_threads) as pool:
            done = sum(pool.map(worked, range(n_threads)))
    return done / (clock() - started)


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def show(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Prints the rows as a table; floats with three significant digits, counts with separators."""
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    Console(width=140).print(table)


def write(file: str | None, machine: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Writes {"machine": ..., "rows": [...]} when a file is named."""
    if file is not None:
        Path(file).write_text(json.dumps({"machine": machine, "rows": list(rows)}, indent=1) + "\n", encoding="utf-8")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)
