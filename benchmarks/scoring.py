"""Pairs per second of every join beside what people run today, on one machine in one run.

    python benchmarks/scoring.py [--model build/demo/model] [--json FILE]

Every form scores the same users of P tokens and items of S tokens. `fraction_of_peak` counts the useful operations
of each form's own algorithm, on real tokens, against the measured matrix product of this machine in the same
precision. Without --model a model of MiniLM's shape is made from a seed, and CrossEncoder is left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertModel

from flmrec_spark.lm.families.loading import load_backbone
from flmrec_spark.lm.machine import describe, show, write
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.segments import TokenBlock

_FIRST_ID, _LAST_ID = 1000, 20000  # ids of whole words in BERT's English vocabulary


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scoring.py", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model", metavar="FOLDER", help="pretrained BERT or MiniLM; else MiniLM-L6's shape from a seed"
    )
    parser.add_argument("--user-tokens", type=int, default=100, metavar="P")
    parser.add_argument("--item-tokens", type=int, default=12, metavar="S")
    parser.add_argument("--items", type=int, default=2048, metavar="N")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured time of each row")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = describe(device)
    random = np.random.default_rng(1)
    users = random.integers(_FIRST_ID, _LAST_ID, (64, arguments.user_tokens)).tolist()
    ids = random.integers(_FIRST_ID, _LAST_ID, (arguments.items, arguments.item_tokens), dtype=np.int32)
    items = TokenBlock(ids, np.full(len(ids), arguments.item_tokens, dtype=np.int32))
    rows = stock_rows(arguments, machine, users, items, device)
    for join, join_layer in forms(load(arguments.model).config.num_hidden_layers):
        for precision in ("fp32", "bf16"):
            for packed in (False, True) if device == "cpu" else (False,):
                form = (join, join_layer, precision, packed)
                rows.append(own_row(arguments, machine, users, items, device, form))
    rate = rows[0]["pairs_per_s"]
    for row in rows:
        row["ratio_to_cross_encoder"] = row["pairs_per_s"] / rate
    show(f"P = {arguments.user_tokens}, S = {arguments.item_tokens}, {machine['cpu']}, {machine['device']}", rows)
    write(arguments.json, machine, rows)
    return 0


def forms(n_layers: int) -> list[tuple[str, int]]:
    return [*[("layer", layer) for layer in range(n_layers + 1)], ("attention", n_layers - 1)]


def load(folder: str | None) -> Any:
    if folder is not None:
        return load_backbone(folder)
    torch.manual_seed(1)
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    return BertModel(config, add_pooling_layer=False).train(False)


def own_row(
    arguments: argparse.Namespace,
    machine: dict[str, Any],
    users: list[list[int]],
    items: TokenBlock,
    device: str,
    form: tuple[str, int, str, bool],
) -> dict[str, Any]:
    """One form of this project; users are encoded and items scored, items' own states are there already."""
    join, join_layer, precision, packed = form
    model = SegmentedModel(
        load(arguments.model),
        join=join,
        join_layer=join_layer,
        item_position=arguments.user_tokens,
        item_tokens=arguments.item_tokens,
    ).eval()
    scorer = Scorer(model, items, precision=precision, device=device, packed=packed)
    rate = measure(lambda number: scorer.logits(users[number % len(users)]), len(items), arguments.seconds)
    flops = useful_flops(model, arguments.user_tokens, arguments.item_tokens, len(items))
    return {
        "name": "flmrec packed" if packed else "flmrec",
        "precision": precision,
        "join": join,
        "join_layer": join_layer,
        "pairs_per_s": rate,
        "ratio_to_cross_encoder": None,
        "fraction_of_peak": rate * flops / (machine["peak_gflops"][precision] * 1e9),
    }


def stock_rows(
    arguments: argparse.Namespace, machine: dict[str, Any], users: list[list[int]], items: TokenBlock, device: str
) -> list[dict[str, Any]]:
    """sentence-transformers' CrossEncoder, when it is installed, and the stock forward on padded pairs."""
    rows = []
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        backbone = load(arguments.model).to(device, dtype)
        rate = measure(pairs_of(backbone, users, items, device), 64, arguments.seconds)
        config = backbone.config
        tokens = arguments.user_tokens + arguments.item_tokens
        flops = config.num_hidden_layers * layer_flops(config, tokens, tokens)
        peak = machine["peak_gflops"][precision] * 1e9
        rows.append(stock_row("stock forward", precision, rate, rate * flops / peak))
    try:
        from sentence_transformers import CrossEncoder
    except ImportError:
        return rows
    if arguments.model is None:
        return rows
    encoder = CrossEncoder(arguments.model, num_labels=1, device=device, local_files_only=True)
    words = [[encoder.tokenizer.decode(row) for row in part] for part in (users, items.ids[:256].tolist())]
    found = []
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        encoder.model.to(dtype)
        rates = {}
        for size in (16, 32, 64, 128):

            def predict(number: int, size: int = size) -> Any:
                pairs = [(words[0][number % len(words[0])], text) for text in words[1]]
                return encoder.predict(pairs, batch_size=size, show_progress_bar=False)

            rates[size] = measure(predict, len(words[1]), arguments.seconds)
        best = max(rates, key=lambda size: rates[size])
        found.append(stock_row(f"CrossEncoder.predict, batch {best}", precision, rates[best], None))
    return found + rows


def stock_row(name: str, precision: str, rate: float, fraction: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "precision": precision,
        "join": "full",
        "join_layer": None,
        "pairs_per_s": rate,
        "ratio_to_cross_encoder": None,
        "fraction_of_peak": fraction,
    }


def pairs_of(backbone: Any, users: list[list[int]], items: TokenBlock, device: str) -> Callable[[int], Any]:
    """A function of a number that runs 64 pairs of one user through the stock model."""
    chosen = torch.from_numpy(items.ids[:64]).long()

    @torch.inference_mode()
    def run(number: int) -> Any:
        user = torch.tensor(users[number % len(users)]).expand(64, -1)
        return backbone(torch.cat([user, chosen], 1).to(device)).last_hidden_state[:, 0].cpu()

    return run


def measure(work: Callable[[int], Any], n_pairs: int, seconds: float) -> float:
    """Pairs per second, after one call that is not counted."""
    work(0)
    started, number = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        number += 1
        work(number)
    return number * n_pairs / (time.perf_counter() - started)


def layer_flops(config: Any, queries: int, keys: int) -> float:
    """Floating-point operations of one layer for `queries` tokens that attend to `keys`, their K and V included."""
    hidden = config.hidden_size
    return float(queries * (8.0 * hidden**2 + 4.0 * hidden * config.intermediate_size + 4.0 * hidden * keys))


def useful_flops(model: SegmentedModel, n_user: int, n_item: int, n_items: int) -> float:
    """Operations per pair of a form's own algorithm: the user's share, and the layers from the join on."""
    config: Any = model.backbone.config
    family, hidden = model.family, model.family.hidden
    per_user = family.n_layers * layer_flops(config, n_user, n_user) / n_items
    if model.is_two_towers:
        return per_user + 2.0 * hidden
    feed_forward = 0.0 if model.join == "attention" else 4.0 * hidden * config.intermediate_size
    last = (
        2.0 * hidden**2 + feed_forward + 4.0 * hidden * n_user
    )  # one token: out-projection, feed-forward, user's keys
    if model.join_layer == family.n_layers - 1:
        return per_user + last
    first = layer_flops(config, n_item, n_user + n_item) - n_item * (6.0 * hidden**2 + 4.0 * hidden * n_item)
    middle = (family.n_layers - 2 - model.join_layer) * layer_flops(config, n_item, n_user + n_item)
    to_last = 2.0 * hidden**2 + 4.0 * hidden**2 * n_item + 4.0 * hidden * n_item  # Q of one token, K and V of all
    return per_user + first + middle + to_last + last


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
