"""Size, memory and speed of every family of models at its usual shapes, on one machine in one run.

    python benchmarks/models.py [--model build/demo/model] [--shapes MiniLM-L6 ...] [--tiny] [--json FILE]

Each shape is measured in two fresh processes, one that trains and one that scores, whose largest resident memory is
told (that of scoring before the stock pair runs); `rest` of it is there before any model. A training step has B
prefixes and G pairs of each, AdamW on all weights, or LoRA where the shape has half a billion. `pairs_per_s` counts
the user's own states, `items_per_s` the states of an item, which are made once. `last` joins in the last layer, `first`
in the first. The stock pair is the transformers forward on user and item together, in the same format and at its best
batch size. Weights are random, but of MiniLM-L6 with --model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flmrec_spark.config import AdapterConfig, FinetuneConfig
from flmrec_spark.lm import memory, native, training
from flmrec_spark.lm.adapters import Adapter
from flmrec_spark.lm.batches import step_of
from flmrec_spark.lm.machine import calls_per_second, describe, show, write
from flmrec_spark.lm.model import Segment, SegmentedModel
from flmrec_spark.lm.precision import DTYPES
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.shapes import SHAPES, load
from flmrec_spark.lm.token_block import TokenBlock
from flmrec_spark.lm.training import BiasTerms

ADAPTED = {"Qwen2.5-0.5B", "Qwen3-0.6B"}
_FIRST_ID, _LAST_ID = 1000, 2000  # in every vocabulary
_STOCK_BATCHES = (8, 32)
_FEW = 64  # items whose states are made, and of a join at the first layer, whose pairs cost every layer

Row = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    if arguments.measure is not None:
        kind = {"training": measure_training, "scoring": measure_scoring}[arguments.measure]
        rest = _peak_gib()
        print(json.dumps({"rest_gib": rest, **kind(arguments, arguments.shapes[0])}))
        return 0
    machine = describe("cpu")
    rows: list[Row] = []
    for name in arguments.shapes:
        rows.append(shape_row(argv, name))
        write(arguments.json, machine, rows)
    title = f"P = {arguments.user_tokens}, S = {arguments.item_tokens}, {arguments.precision}, {machine['cpu']}"
    show(f"{title}, {machine['threads']} threads", [_told(row) for row in rows])
    return 0


def shape_row(argv: Sequence[str], name: str) -> Row:
    """One row of two fresh processes: a training, and the segmented forms beside the stock pair."""
    found: Row = {}
    for kind in ("training", "scoring"):
        command = [sys.executable, __file__, *argv, "--shapes", name, "--measure", kind]
        path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
        )
        found |= json.loads(done.stdout.splitlines()[-1])
    stock = found["stock_pairs_per_s"]
    ratios = {f"ratio_{form}": found[f"{form}_pairs_per_s"] / stock for form in ("last", "first")}
    return {"name": name, **found, **ratios}


def _told(row: Row) -> Row:
    """A row as the table shows it; the JSON has all of it."""
    named = {
        "name": "name",
        "M": "parameters_m",
        "trained M": "trained_m",
        "train GiB": "train_peak_gib",
        "train/s": "train_examples_per_s",
        "score GiB": "score_peak_gib",
        "items/s": "items_per_s",
        "last/s": "last_pairs_per_s",
        "x stock": "ratio_last",
        "first/s": "first_pairs_per_s",
        "x stock ": "ratio_first",
        "stock/s": "stock_pairs_per_s",
    }
    return {short: row[name] for short, name in named.items()}


def measure_training(arguments: argparse.Namespace, name: str) -> Row:
    """Steps of the last-layer join, the first of which is not counted."""
    model = _model(arguments, name, "layer", None).train()
    n_all = sum(weight.numel() for weight in model.backbone.parameters())
    if name in ADAPTED:
        model.backbone.bfloat16().float()  # as published
        adapter = Adapter(model.backbone, AdapterConfig(method="lora"), folder=name, n_steps=arguments.steps)
        if arguments.precision == "bf16":
            adapter.round_frozen()
    bias, config = BiasTerms(None, None), FinetuneConfig(negatives=0, ranking_weight=0.0)
    optimizer = training.optimizer(model, bias, config)
    random = np.random.default_rng(1)
    n_rows, n_pairs = arguments.prefixes, arguments.pairs
    items = _block(random, n_rows * n_pairs, arguments.item_tokens)
    asked = np.arange(n_rows * n_pairs).reshape(n_rows, n_pairs)
    rows = np.arange(n_rows)
    labels = random.integers(0, 2, asked.shape).astype(np.float32)
    step = step_of(_block(random, n_rows, arguments.user_tokens), rows, asked, labels, rows)
    took = []
    for _ in range(arguments.steps):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "bf16"), training.attention("cpu"):
            logits, _ = training.step_logits(model, bias, step, items, bias_dropout=0.0)
        flat = np.zeros(len(items), dtype=np.float32)
        value = training.loss(logits.float(), logits.float(), step, whole=step, log_share=flat, config=config)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        took.append(time.perf_counter() - started)
    n_trained = sum(weight.numel() for weight in model.backbone.parameters() if weight.requires_grad)
    return {
        "parameters_m": n_all / 1e6,
        "trained_m": n_trained / 1e6,
        "train_peak_gib": _peak_gib(),
        "train_examples_per_s": asked.size * len(took[1:]) / sum(took[1:]),
    }


def measure_scoring(arguments: argparse.Namespace, name: str) -> Row:
    """The last-layer join, with the memory that it took, then the join at the first layer."""
    items = _block(np.random.default_rng(1), arguments.items, arguments.item_tokens)
    few = items.take(np.arange(min(_FEW, len(items))))
    found = _last_rates(arguments, name, items, few)
    found["score_peak_gib"] = _peak_gib()
    scorer = _scorer(_model(arguments, name, "layer", 0), few, arguments.precision)
    found["first_pairs_per_s"] = _pairs_per_s(arguments, scorer, len(few))
    return found | {"stock_pairs_per_s": _stock_pairs_per_s(arguments, name)}


def _last_rates(arguments: argparse.Namespace, name: str, items: TokenBlock, few: TokenBlock) -> Row:
    scorer = _scorer(_model(arguments, name, "layer", None), items, arguments.precision)
    made = len(few) * calls_per_second(lambda _: scorer.encode(few), arguments.seconds)
    return {"items_per_s": made, "last_pairs_per_s": _pairs_per_s(arguments, scorer, len(items))}


def _stock_pairs_per_s(arguments: argparse.Namespace, name: str) -> float:
    """The best rate of whole pairs by the transformers model alone."""
    model = _model(arguments, name, "full", 0)
    model.backbone.to(DTYPES[arguments.precision])
    random = np.random.default_rng(1)
    rates = []
    for size in _STOCK_BATCHES:
        user, items = _block(random, 1, arguments.user_tokens), _block(random, size, arguments.item_tokens)
        parts = [torch.from_numpy(part) for part in (user.ids, user.lengths, items.ids, items.lengths)]
        user_part = Segment(parts[0].long().expand(size, -1), parts[1].expand(size))
        pair = user_part, Segment(parts[2].long(), parts[3])
        with torch.inference_mode():
            rates.append(size * calls_per_second(lambda _, pair=pair: model.pair(*pair), arguments.seconds))  # type: ignore[misc]
    return max(rates)


def _model(arguments: argparse.Namespace, name: str, join: str, join_layer: int | None) -> SegmentedModel:
    folder = arguments.model if name == "MiniLM-L6" else None
    backbone = load(name, folder, tiny=arguments.tiny)
    places = {"item_position": arguments.user_tokens, "item_tokens": arguments.item_tokens}
    layers = getattr(backbone.config, "num_decoder_layers", None) or backbone.config.num_hidden_layers
    at = int(layers) - 1 if join_layer is None else join_layer
    return SegmentedModel(backbone, join=join, join_layer=at, **places).eval()


def _scorer(model: SegmentedModel, items: TokenBlock, precision: str) -> Scorer:
    kernel = native.load(native.build())
    return Scorer(model, items, precision=precision, kernel=kernel, packed=kernel is not None)


def _pairs_per_s(arguments: argparse.Namespace, scorer: Scorer, n_items: int) -> float:
    users = _block(np.random.default_rng(2), 16, arguments.user_tokens).ids.tolist()
    n_threads = torch.get_num_threads()
    calls = calls_per_second(lambda number: scorer.logits(users[number % 16]), arguments.seconds, n_threads=n_threads)
    return n_items * calls


def _block(random: np.random.Generator, n: int, n_tokens: int) -> TokenBlock:
    ids = random.integers(_FIRST_ID, _LAST_ID, (n, n_tokens), dtype=np.int32)
    return TokenBlock(ids, np.full(n, n_tokens, np.int32))


def _peak_gib() -> float:
    return sum(memory.peak_mb().values()) / 1024


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="models.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", metavar="FOLDER", help="pretrained model for the shape MiniLM-L6; else random weights")
    add("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    add("--precision", choices=("fp32", "bf16"), default="bf16", help="of everything")
    add("--user-tokens", type=int, default=100, metavar="P")
    add("--item-tokens", type=int, default=12, metavar="S")
    add("--items", type=int, default=1024, metavar="N", help="catalogue of a user's pass")
    add("--prefixes", type=int, default=8, metavar="B", help="of a training step")
    add("--pairs", type=int, default=16, metavar="G", help="of each of them, with an item of their own")
    add("--steps", type=int, default=3, help="of the training; the first is not counted")
    add("--seconds", type=float, default=2.0, help="measured time of each rate")
    add("--tiny", action="store_true", help="tiny models of each type, for a trial")
    add("--measure", choices=("training", "scoring"), help=argparse.SUPPRESS)
    add("--json", metavar="FILE")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
