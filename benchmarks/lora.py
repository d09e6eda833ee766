"""A decoder of half a billion weights through fine-tuning with LoRA, a checkpoint and scoring on a CPU: memory, time.

    python benchmarks/lora.py --config conf/demo.yaml [--shape Qwen2.5-0.5B] [--tiny] [--json FILE] [key=value ...]

The weights are random, stored in bfloat16 as such models are published; prompts and tokenizer are the config's, the
tables those of its --items most rated items. Fine-tuning and scoring are what scripts/finetune.py and a scoring worker
do, each in a fresh process whose largest resident memory is told. The few steps teach nothing: what is measured is
that it fits, and how long it takes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import write_deltalake

from flmrec_spark import columns as c
from flmrec_spark.config import load_config
from flmrec_spark.lm import checkpoint, dataset, memory, native
from flmrec_spark.lm.finetuning import finetune
from flmrec_spark.lm.machine import describe, show, write
from flmrec_spark.lm.prepared import read_tables
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.shapes import SHAPES, load

_ROOT = Path(__file__).parent.parent
_USERS = 8  # scored

Row = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    if arguments.part is not None:
        part = {"training": train, "scoring": score}[arguments.part]
        print(json.dumps(part(arguments)))
        return 0
    machine = describe("cpu")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        _write_model(arguments, Path(folder) / "model")
        _write_tables(arguments, Path(folder) / "tables")
        rows = [_fresh(argv, folder, part) for part in ("training", "scoring")]
    show(f"{arguments.shape}, {machine['cpu']}, {machine['threads']} threads", rows)
    write(arguments.json, machine, rows)
    return 0


def train(arguments: argparse.Namespace) -> Row:
    """A whole fine-tuning: data, model, steps, validation, checkpoint."""
    own = [
        *(f"model.path={arguments.folder}/model", f"checkpoint={arguments.folder}/checkpoint"),
        *(f"tables.root={arguments.folder}/tables", "model.bias_terms=false", "finetune.adapter.method=lora"),
        "model.collaborative.dimension=0",
        *(f"finetune.max_steps={arguments.steps}", f"finetune.examples_per_step={arguments.prefixes}"),
        *("finetune.valid_users=4", f"finetune.precision={arguments.precision}"),
    ]
    started = time.perf_counter()
    done = finetune(load_config(arguments.config, [*own, *arguments.overrides]))
    spent = time.perf_counter() - started
    return {"part": "training", "steps": done["steps"], "seconds": spent, "peak_gib": _peak_gib(), "pairs_per_s": None}


def score(arguments: argparse.Namespace) -> Row:
    """The checkpoint loaded, the catalogue's states made, and some users scored against it."""
    started = time.perf_counter()
    found = checkpoint.load(f"{arguments.folder}/checkpoint")
    segmenter, prepared = found.segmenter(), read_tables(f"{arguments.folder}/tables")
    items = dataset.catalog(prepared.tables["items"], segmenter)
    kernel = native.load(native.build())
    ways: dict[str, Any] = {"precision": arguments.precision, "kernel": kernel, "packed": kernel is not None}
    scorer = Scorer(found.model(), items.tokens, **ways)
    user_ids = sorted(prepared.tables["users"][c.USER_ID].to_pylist())
    rows = dataset.examples(prepared, c.TEST, items, segmenter, width=None, user_ids=user_ids)
    at, n_users = time.perf_counter(), min(_USERS, len(rows))
    scores = np.stack([scorer.score(rows.prefixes[row]) for row in range(n_users)])
    spent = time.perf_counter() - at
    if not np.isfinite(scores).all():
        raise SystemExit("lora.py: a score is no number")
    seconds = time.perf_counter() - started
    rate = scores.size / spent
    return {"part": "scoring", "steps": None, "seconds": seconds, "peak_gib": _peak_gib(), "pairs_per_s": rate}


def _write_model(arguments: argparse.Namespace, folder: Path) -> None:
    """Random weights in bfloat16 and the tokenizer of the config's own model."""
    load(arguments.shape, None, tiny=arguments.tiny).bfloat16().save_pretrained(folder)
    source = load_config(arguments.config, arguments.overrides).model.path
    checkpoint.load_tokenizer(source).save_pretrained(folder)


def _write_tables(arguments: argparse.Namespace, folder: Path) -> None:
    """The prepared tables with the most rated items alone."""
    prepared = read_tables(load_config(arguments.config, arguments.overrides).tables.root)
    rated = Counter(prepared.tables["interactions"][c.ITEM_ID].to_pylist())
    kept = {item for item, _ in rated.most_common(arguments.items)}
    for name, table in prepared.tables.items():
        rows = [row for row in table.to_pylist() if row.get(c.ITEM_ID, next(iter(kept))) in kept]
        if name == "examples":
            for row in rows:
                for column in (c.HISTORY, c.TARGETS):
                    row[column] = [entry for entry in row[column] if entry[c.ITEM_ID] in kept]
            rows = [row for row in rows if row[c.TARGETS]]
        write_deltalake(str(folder / name), pa.Table.from_pylist(rows, table.schema))


def _fresh(argv: Sequence[str], folder: str, part: str) -> Row:
    command = [sys.executable, __file__, *argv, "--part", part, "--folder", folder]
    path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _peak_gib() -> float:
    return sum(memory.peak_mb().values()) / 1024


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lora.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="of the prepared tables and the tokenizer")
    add("--shape", choices=SHAPES, default="Qwen2.5-0.5B")
    add("--precision", choices=("fp32", "bf16"), default="bf16")
    add("--steps", type=int, default=2)
    add("--prefixes", type=int, default=2, help="of a step, with up to prepare.targets_per_example pairs each")
    add("--items", type=int, default=256, help="items of the catalogue")
    add("--folder", metavar="FOLDER", help="where the model and the checkpoint are for the time being")
    add("--tiny", action="store_true", help="a tiny model of the type, for a trial")
    add("--part", choices=("training", "scoring"), help=argparse.SUPPRESS)
    add("--json", metavar="FILE")
    add("overrides", nargs="*", metavar="section.key=value", help="settings over those of the file")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
