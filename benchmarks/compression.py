"""What each compression costs in quality and buys in speed, on prepared tables and in one run.

    python benchmarks/compression.py --config conf/demo.yaml [--folder build/compression] [--json FILE] [key=value ...]

Every arm is fine-tuned with the same settings, data and number of steps, and asked about the same held-out rows of the
test split: AUC and UAUC on those that were rated, NDCG@10 of the liked ones in the whole catalogue. Intervals are
percentiles over resamples of users, of differences paired by user; they tell nothing of another seed. A stock pair is
too slow to train for long and to list a catalogue: arms that need one are a shorter contest of their own, without NDCG.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from flmrec_spark.config import Config, load_config
from flmrec_spark.lm import checkpoint, native
from flmrec_spark.lm.finetuning import finetune
from flmrec_spark.lm.held_out import Answers, HeldOut, compared, told
from flmrec_spark.lm.machine import calls_per_second, describe, named, show, write
from flmrec_spark.lm.prepared import read_tables
from flmrec_spark.lm.scorer import Scorer

_PARTS = ("quality", "speed")

Row = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One way to train, the formats that it is scored in, and the arm that it is compared with."""

    name: str
    against: str
    settings: tuple[str, ...] = ()
    teacher: str | None = None
    precisions: tuple[str, ...] = ("fp32",)
    is_short: bool = False


def arms(config: Config) -> list[Arm]:
    n_layers = int(AutoConfig.from_pretrained(config.model.path, local_files_only=True).num_hidden_layers)
    half = (f"model.keep_layers={list(range(0, n_layers, 2))}",)
    every = tuple(native_precisions())
    return [
        Arm("all layers", "all layers", precisions=every),
        Arm("half the layers", "all layers", half),
        Arm("half the layers, taught by all", "all layers", half, teacher="all layers"),
        Arm("short: all layers", "short: all layers", is_short=True),
        Arm("short: full", "short: all layers", ("model.join=full",), precisions=("bf16",), is_short=True),
        Arm("short: all layers, taught by full", "short: all layers", teacher="short: full", is_short=True),
    ]


def native_precisions() -> list[str]:
    """fp32, bf16, and int8 where there is a compiler for its kernel and a CPU that multiplies bytes."""
    kernel = native.load(native.build())
    return ["fp32", "bf16", *(["int8"] if kernel is not None and kernel.multiplies_bytes else [])]


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    run = Run(arguments)
    rows: list[Row] = []
    for arm in named(arms(run.config), arguments.only):
        for row in run.rows(arm):
            first = rows[0] if rows else row
            row["ratio"] = None if row["pairs_per_s"] is None else row["pairs_per_s"] / first["pairs_per_s"]
            rows.append(row)
            write(arguments.json, run.machine, rows)
    show(f"{run.machine['cpu']}, {run.machine['threads']} threads", [_told(row) for row in rows])
    return 0


TEXT_ALONE = "model.collaborative.dimension=0"  # what is compressed is the language model


class Run:
    """One set of tables and settings; checkpoints that are there already are used again."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.config = load_config(arguments.config, arguments.overrides)
        self.machine = describe("cpu")
        self.kernel = native.load(native.build())
        self.prepared = read_tables(self.config.tables.root)
        self.answers: dict[str, Answers] = {}

    def rows(self, arm: Arm) -> Iterator[Row]:
        done = finetune(self.arm_config(arm))
        for precision in arm.precisions:
            yield self.row(arm, done, precision)

    def folder(self, name: str) -> Path:
        return Path(self.arguments.folder) / name.replace(" ", "_").replace(":", "").replace(",", "")

    def arm_config(self, arm: Arm) -> Config:
        n_steps = self.arguments.short_steps if arm.is_short else self.arguments.steps
        own = [f"checkpoint={self.folder(arm.name)}", f"finetune.max_steps={n_steps}", TEXT_ALONE, *arm.settings]
        if arm.is_short:
            own += [f"finetune.examples_per_step={self.arguments.short_examples}", "finetune.accumulate_steps=4"]
        if arm.teacher is not None:
            own.append(f"finetune.teacher={self.folder(arm.teacher)}")
        return load_config(self.arguments.config, [*self.arguments.overrides, *own])

    def row(self, arm: Arm, done: dict[str, object], precision: str) -> Row:
        found = checkpoint.load(self.folder(arm.name))
        test = HeldOut.of(self.prepared, found, self.arguments.users)
        model = test.model
        ways: dict[str, Any] = {"precision": precision, "kernel": self.kernel, "packed": self.kernel is not None}
        scorer = Scorer(model, test.catalog.tokens, item_bias=test.item_bias, **ways)
        row: Row = {"name": arm.name, "precision": precision, "join": model.join, "steps": done["steps"]}
        row |= {"layers": model.family.n_layers, "train_seconds": done.get("seconds")}
        row |= {"pairs_per_s": None, "ratio": None}
        if "quality" in self.arguments.parts:
            row |= self.quality(arm, f"{arm.name} {precision}", test, scorer)
        if "speed" in self.arguments.parts:
            row["pairs_per_s"] = self.speed(test, scorer)
        return row

    def quality(self, arm: Arm, key: str, test: HeldOut, scorer: Scorer) -> Row:
        """Each metric with its interval, and its difference from the arm that this one is compared with."""
        self.answers[key] = own = test.answers(scorer, lists=not arm.is_short)
        base = self.answers.get(f"{arm.against} fp32", own)
        return compared([own], [base], n_resamples=self.arguments.bootstrap)

    def speed(self, test: HeldOut, scorer: Scorer) -> float:
        """Pairs per second, the user's states included; the stock pair on a block of the items."""
        index = np.arange(64) % len(test.catalog.item_ids) if scorer.model.join == "full" else None
        n_pairs = len(test.catalog.item_ids) if index is None else len(index)

        def work(number: int) -> None:
            scorer.logits(test.rows.prefixes[number % len(test.rows)], items=index)

        return n_pairs * calls_per_second(work, self.arguments.seconds, n_threads=torch.get_num_threads())


def _told(row: Row) -> Row:
    kept = ("name", "precision", "join", "layers", "steps", "pairs_per_s", "ratio")
    return {key: row[key] for key in kept} | told(row)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="compression.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="of the prepared tables and the pretrained model")
    add("--folder", default="build/compression", help="of the checkpoints; finished ones are used again")
    add("--steps", type=int, default=24, help="of every arm but the short ones")
    add("--short-steps", type=int, default=16, help="of the arms that are compared with the stock pair")
    add("--short-examples", type=int, default=16, help="user prefixes in their steps")
    add("--parts", nargs="+", choices=_PARTS, default=list(_PARTS), help="what is measured")
    add("--only", nargs="+", metavar="ARM", help="names of arms; the first is compared with")
    add("--users", type=int, default=943, help="held-out users at most")
    add("--bootstrap", type=int, default=500, help="resamples of users")
    add("--seconds", type=float, default=3.0, help="measured time of each rate")
    add("--json", metavar="FILE")
    add("overrides", nargs="*", metavar="section.key=value", help="settings of every arm, over those of the file")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
