"""The model beside all baselines, trained anew with several seeds: prepare, fine-tune, evaluate, one table.

    python benchmarks/quality.py --config conf/demo.yaml [--seeds 1 2 3] [--json FILE] [key=value ...]

Runs the project's own commands: `spark-submit jobs/prepare.py`, then `scripts/finetune.py` and `spark-submit
jobs/evaluate.py` for each seed, with a checkpoint of its own, and reads the table `evaluation`. A value is the mean
over the seeds; the interval of a paired difference is the widest that covers every seed's 95 % interval over users,
so what excludes zero does so with every seed. What is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
from deltalake import DeltaTable

from flmrec_spark.config import Config, load_config
from flmrec_spark.errors import ConfigError
from flmrec_spark.files import table_place
from flmrec_spark.lm.machine import describe, show, write

ROOT = Path(__file__).parent.parent
METRICS = (("auc", 0), ("uauc", 0), ("log_loss", 0), ("calibration_error", 0), ("ndcg", 10), ("recall", 10))
OURS = ("flm", "hybrid")

Row = dict[str, Any]
Found = dict[tuple[str, str, int], tuple[float | None, float | None, float | None]]  # model, metric, k


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    config = load_config(arguments.config, arguments.overrides)
    if config.tables.root is None:
        raise ConfigError("tables.root: got null, expected a folder: the table evaluation is read by its path")
    folder = Path(arguments.folder or f"build/quality/{Path(arguments.config).stem}")
    settings = ["--config", arguments.config, *arguments.overrides]
    spark("prepare", settings)
    own = {seed: [*settings, f"finetune.seed={seed}", f"checkpoint={folder}/seed-{seed}"] for seed in arguments.seeds}
    with ThreadPoolExecutor(arguments.workers) as pool:
        threads = max(1, (os.cpu_count() or 1) // min(arguments.workers, len(own)))
        trained = list(pool.map(lambda each: finetune(each, threads), own.values()))
    runs = {seed: spark("evaluate", each)["run_id"] for seed, each in own.items()}
    found = [measured(config, run, arguments.segment) for run in runs.values()]
    rows = [row_of(model, found) for model in _models(found)]
    machine = describe("cpu") | {"seeds": arguments.seeds, "train_seconds": [each.get("seconds") for each in trained]}
    write(arguments.json, machine, rows)
    show(f"segment {arguments.segment}, {len(found)} seeds", [_told(row) for row in rows])
    for model in OURS:
        compared = [row for row in rows if f"{model}_less" in row]
        if compared:
            show(f"{model} less each", [{"model": row["name"]} | _differences(row, model) for row in compared])
    return 0


def spark(job: str, settings: Sequence[str]) -> Row:
    """What the last line of a job says. Raises RuntimeError when it fails."""
    return _last_line(["spark-submit", str(ROOT / f"jobs/{job}.py"), *settings], {})


def finetune(settings: Sequence[str], threads: int) -> Row:
    command = [sys.executable, str(ROOT / "scripts/finetune.py"), *settings]
    return _last_line(command, {"OMP_NUM_THREADS": str(threads)})


def measured(config: Config, run: str, segment: str) -> Found:
    """(value, low, high) of a run's metrics in a segment."""
    table = DeltaTable(table_place(str(config.tables.root), "evaluation")).to_pyarrow_dataset()
    own = (ds.field("run_id") == run) & (ds.field("segment") == segment)
    rows = table.to_table(filter=own, use_threads=False).to_pylist()  # threads may outlive the process
    return {(row["model"], row["metric"], row["k"]): (row["value"], row["low"], row["high"]) for row in rows}


def row_of(model: str, found: Sequence[Found]) -> Row:
    """Values of a model, and what flm and the hybrid are above it."""
    row: Row = {"name": model}
    for metric, k in METRICS:
        name = f"{metric}@{k}" if k else metric
        row[name] = _over_seeds([own.get((model, metric, k)) for own in found])
        for ours in OURS:
            parts = [own.get((f"{ours} - {model}", metric, k)) for own in found]
            if any(part is not None for part in parts):
                row.setdefault(f"{ours}_less", {})[name] = _over_seeds(parts)
    return row


def _over_seeds(parts: Sequence[tuple[float | None, float | None, float | None] | None]) -> Row | None:
    """Mean, standard deviation over seeds, and the interval that covers that of every seed; None where one lacks it."""
    if any(part is None or part[0] is None for part in parts):
        return None
    values, lows, highs = zip(*[part for part in parts if part is not None], strict=True)
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    bounded = None not in lows and None not in highs
    interval = [min(lows), max(highs)] if bounded else None
    return {"mean": float(np.mean(values)), "sd": spread, "interval": interval, "seeds": list(values)}


def _models(found: Sequence[Found]) -> list[str]:
    names = dict.fromkeys(model for own in found for model, *_ in own if " - " not in model)
    return sorted(names, key=lambda name: (OURS.index(name) if name in OURS else len(OURS), list(names).index(name)))


def _told(row: Row) -> Row:
    told = {"model": row["name"]}
    for metric, k in METRICS:
        name = f"{metric}@{k}" if k else metric
        cell = row[name]
        told[name] = "" if cell is None else f"{cell['mean']:.4f}" + ("" if not cell["sd"] else f" ±{cell['sd']:.4f}")
    return told


def _differences(row: Row, model: str) -> Row:
    cells = {}
    for name in ("auc", "uauc", "log_loss", "ndcg@10"):
        cell = row[f"{model}_less"].get(name)
        cells[name] = ""
        if cell is not None:
            low, high = cell["interval"] or (np.nan, np.nan)
            cells[name] = f"{cell['mean']:+.4f} ({low:+.4f} .. {high:+.4f})"
    return cells


def _last_line(command: Sequence[str], more: dict[str, str]) -> Row:
    print("$", *command, file=sys.stderr, flush=True)
    environment = {**os.environ, **more}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} {command[1]}: exit code {done.returncode}: {done.stdout[-2000:]}")
    last: Row = json.loads(done.stdout.strip().splitlines()[-1])
    return last


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="quality.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--config", required=True, metavar="FILE")
    add("--seeds", nargs="+", type=int, default=[1, 2, 3])
    add("--folder", help="of the checkpoints; build/quality/<config>")
    add("--segment", default="all", help="of users or items, as the table evaluation names it")
    add("--workers", type=int, default=os.cpu_count() or 1, help="seeds that are trained at a time")
    add("--json", metavar="FILE")
    add("overrides", nargs="*", metavar="section.key=value", help="settings of every command, over those of the file")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
