"""What each part of the model is worth, and what each join costs in quality: the same training with and without.

    python benchmarks/ablation.py parts --config conf/demo.yaml [--seeds 1 2 3] [--json FILE] [key=value ...]
    python benchmarks/ablation.py joins --config conf/demo.yaml [--seeds 1 2 3] [--json FILE] [key=value ...]

`parts` begins with the text and the liked history alone and adds one part after the other, each row compared with the
one before it. `joins` trains every join alike and compares it with `full`, the stock pair, and teaches the last-layer
join by it. On a GPU that is the config's own training, scored in bf16. On a CPU, to make it possible at all, steps are
small and the head is that of the ratings alone, but with --whole, for joins that a CPU has time for; lists of a whole
catalogue are made of the joins from the last layer on there: of the others they would take hours. Asked are the
held-out rows of the test split. A value is the mean over the seeds; intervals are percentiles over resamples of users
of the paired difference, and the JSON has the values of every seed.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from flmrec_spark.config import Config, load_config
from flmrec_spark.lm import checkpoint, native
from flmrec_spark.lm.finetuning import finetune
from flmrec_spark.lm.held_out import Answers, HeldOut, compared, told
from flmrec_spark.lm.machine import describe, named, show, write
from flmrec_spark.lm.precision import can_pack
from flmrec_spark.lm.prepared import read_tables
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.prompts import load_template

Row = dict[str, Any]
Trained = tuple[list[Answers], list[float | None]]  # of each seed
_SMALL = ("finetune.ranking_weight=0", "prepare.targets_per_example=8")  # what a stock pair on a CPU has time for
_IN_PARTS = "finetune.accumulate_steps=16"  # of a step whose pairs each have states of their own, for the memory


@dataclass(frozen=True)
class Arm:
    """One way to train, and the arm that it is compared with."""

    name: str
    against: str
    settings: tuple[str, ...] = ()
    lists: bool = True
    teacher: str | None = None  # another arm, trained before


@dataclass(frozen=True)
class Training:
    """One arm with one seed: all that another process needs."""

    config: str
    overrides: tuple[str, ...]
    users: int
    lists: bool
    device: str
    threads: int


def parts_of(config: Config, folder: Path) -> list[Arm]:
    """Each arm has all parts of those before it; the last has all that there are."""
    likes = folder / "likes.yaml"
    template = load_template(config.prompts.template)
    likes.write_text(replace(template, disliked=replace(template.disliked, text="")).to_yaml(), encoding="utf-8")
    terms = ("model.collaborative.tokens=false",)
    bare = ("model.bias_terms=false", "finetune.ranking_weight=0", "model.collaborative.dimension=0", *terms)
    plain = tuple(f"{key}=0" for key in ("model.collaborative.profile", "model.collaborative.neighbours"))
    even = ("finetune.factors.graded_labels=false",)
    steps = [
        ("text, liked history", (f"prompts.template={likes}", *bare)),
        ("+ disliked history", bare),
        ("+ bias terms", bare[1:]),
        ("+ listwise loss and head", bare[2:]),
        ("+ collaborative factors", (*terms, *plain, *even)),
        ("+ graded labels", (*terms, *plain)),
        ("+ neighbours", (*terms, plain[0])),
        ("+ profiles", terms),
        ("+ collaborative tokens", ("model.collaborative.tokens=true",)),
    ]
    names = [name for name, _ in steps]
    return [Arm(name, before, own) for (name, own), before in zip(steps, [names[0], *names], strict=False)]


def joins_of(config: Config, device: str, *, is_whole: bool) -> list[Arm]:
    """`is_whole`: the config's own training on a CPU too."""
    n_layers = int(AutoConfig.from_pretrained(config.model.path, local_files_only=True).num_hidden_layers)
    small, last = _SMALL if device == "cpu" and not is_whole else (), n_layers - 1
    arms = [Arm("full", "full", (*small, _IN_PARTS, "model.join=full"), lists=device != "cpu")]
    for layer in sorted({0, n_layers // 2, last, n_layers}):
        own = (*small, *([_IN_PARTS] if layer < last else []), "model.join=layer", f"model.join_layer={layer}")
        arms.append(Arm(f"join_layer {layer}", "full", own, lists=device != "cpu" or layer >= last))
    arms.insert(-1, Arm("attention", "full", (*small, "model.join=attention")))
    own = (*small, "model.join=layer", f"model.join_layer={last}", "finetune.teacher_weight=0.5")
    return [*arms, Arm(f"join_layer {last}, taught by full", f"join_layer {last}", own, teacher="full")]


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    config = load_config(arguments.config, arguments.overrides)
    folder = Path(arguments.folder or f"build/ablation/{Path(arguments.config).stem}-{arguments.table}")
    folder.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.table == "parts":
        arms = parts_of(config, folder)
    else:
        arms = joins_of(config, device, is_whole=arguments.whole)
    arms = named(arms, arguments.only)
    machine = describe(device)
    found = _all_trained(arguments, arms, folder, device)
    rows = list[Row]()
    for arm in arms:
        answers, seconds = found[arm.name]
        against = arm.against if arm.against in found else arms[0].name
        row: Row = {"name": arm.name, "against": against, "seeds": arguments.seeds, "train_seconds": seconds}
        rows.append(row | compared(answers, found[against][0], n_resamples=arguments.bootstrap))
    write(arguments.json, machine, rows)
    where = f"{machine['cpu']}, {arguments.threads} threads" if device == "cpu" else machine["device"]
    told_of = [{"name": row["name"], "against": row["against"]} | told(row) for row in rows]
    show(f"{where}, {len(arguments.seeds)} seeds", told_of)
    return 0


def _all_trained(arguments: argparse.Namespace, arms: Sequence[Arm], folder: Path, device: str) -> dict[str, Trained]:
    """Every arm with every seed, several at a time; those with a teacher when it is there."""
    found: dict[str, Trained] = {}
    spawn = multiprocessing.get_context("spawn")
    for wave in ([arm for arm in arms if arm.teacher is None], [arm for arm in arms if arm.teacher is not None]):
        asked = [_training(arguments, arm, seed, folder, device) for arm in wave for seed in arguments.seeds]
        with ProcessPoolExecutor(arguments.workers, spawn) as pool:
            done = list(pool.map(trained, asked))
        n_seeds = len(arguments.seeds)
        for place, arm in enumerate(wave):
            own = done[place * n_seeds : (place + 1) * n_seeds]
            found[arm.name] = [answers for answers, _ in own], [seconds for _, seconds in own]
    return found


def trained(training: Training) -> tuple[Answers, float | None]:
    """What a training says of the held-out rows, and its seconds; a finished checkpoint is used again."""
    torch.set_num_threads(training.threads)
    config = load_config(training.config, training.overrides)
    done = finetune(config)
    found = checkpoint.load(config.checkpoint)
    test = HeldOut.of(read_tables(config.tables.root), found, training.users)
    means: dict[str, Any] = {"precision": "bf16", "device": training.device}
    if training.device == "cpu":
        means = {"packed": can_pack(), "kernel": native.load(native.build())}
    scorer = Scorer(test.model, test.catalog.tokens, item_bias=test.item_bias, **means)
    seconds = done.get("seconds")
    return test.answers(scorer, lists=training.lists), float(str(seconds)) if seconds is not None else None


def _training(arguments: argparse.Namespace, arm: Arm, seed: int, folder: Path, device: str) -> Training:
    settings = [*arguments.overrides, *arm.settings, f"checkpoint={_place(folder, arm.name, seed)}"]
    if arm.teacher is not None:
        settings.append(f"finetune.teacher={_place(folder, arm.teacher, seed)}")
    threads = max(1, arguments.threads // arguments.workers)
    own = (*settings, f"finetune.seed={seed}")
    return Training(arguments.config, own, arguments.users, arm.lists, device, threads)


def _place(folder: Path, arm: str, seed: int) -> Path:
    return folder / f"{arm.strip('+ ').replace(' ', '_').replace(',', '')}-{seed}"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ablation.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("table", choices=("parts", "joins"))
    add("--config", required=True, metavar="FILE", help="of the prepared tables and the pretrained model")
    add("--folder", help="of the checkpoints, which are used again; build/ablation/<config>-<table>")
    add("--seeds", nargs="+", type=int, default=[1, 2, 3])
    add(
        "--only",
        nargs="+",
        metavar="ARM",
        help="names of arms; what they would be compared with, if not among them, is their first",
    )
    add("--users", type=int, default=10_000, help="held-out users at most")
    add("--whole", action="store_true", help="joins: train by the config's own settings on a CPU too")
    add("--bootstrap", type=int, default=500, help="resamples of users")
    cores = os.cpu_count() or 1
    add("--workers", type=int, default=cores, help="trainings at a time")
    add("--threads", type=int, default=cores, help="of all of them")
    add("--json", metavar="FILE")
    add("overrides", nargs="*", metavar="section.key=value", help="settings of every arm, over those of the file")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.whole and arguments.table == "parts":
        parser.error("--whole: is of joins; parts are trained by the config's own settings anyway")
    return arguments


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
