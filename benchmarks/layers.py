"""Where one core's time goes in the kernel's layers, by CPU time: a user's layers part by part, and a pair.

    python benchmarks/layers.py [--model build/demo/model] [--json FILE]

`us` is of one call's tokens or pairs together; the best of some calls. `fraction_of_peak` counts useful operations.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from flmrec_spark.lm import native
from flmrec_spark.lm.flops import pair_flops, shape_of, user_flops
from flmrec_spark.lm.fused import FusedLayer
from flmrec_spark.lm.machine import describe, show, write
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.shapes import load
from flmrec_spark.lm.token_block import TokenBlock

N_USER, N_ITEM, N_ITEMS = 100, 12, 512


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="layers.py", description=__doc__.split("\n")[0])
    parser.add_argument("--model", metavar="FOLDER", help="else random weights of MiniLM-L6's shape")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    machine = describe("cpu")
    rows = []
    with torch.inference_mode():
        for precision, peak in machine["peak_gflops"].items():
            for row in rows_of(arguments.model, precision):
                row["fraction_of_peak"] = row.pop("flops") / (row["us"] * 1e3 * peak)
                rows.append(row)
    show(f"P = {N_USER}, S = {N_ITEM}, {N_ITEMS} items, {machine['cpu']}", rows)
    write(arguments.json, machine, rows)
    return 0


def rows_of(folder: str | None, precision: str) -> Iterator[dict[str, Any]]:
    kernel = native.load(native.build())
    random = np.random.default_rng(1)
    ids = random.integers(1000, 20000, (N_ITEMS, N_ITEM), dtype=np.int32)
    items = TokenBlock(ids, np.full(N_ITEMS, N_ITEM, np.int32))

    def row(part: str, work: Callable[[], Any], flops: float) -> dict[str, Any]:
        return {"part": part, "precision": precision, "us": 1e6 * best(work), "flops": flops}

    for join in ("layer", "attention"):
        backbone = load("MiniLM-L6", folder)
        last = backbone.config.num_hidden_layers - 1
        places: dict[str, Any] = {"join": join, "join_layer": last, "item_position": N_USER, "item_tokens": N_ITEM}
        scorer = Scorer(SegmentedModel(backbone, **places).train(False), items, precision=precision, kernel=kernel)
        family: Any = scorer.model.family
        if kernel is None or family.fused is None:
            print(f"{precision}: left out: no kernel for it here", file=sys.stderr)
            return
        shape = shape_of(backbone.config, join=join, join_layer=last)
        words = torch.from_numpy(random.integers(1000, 20000, (1, N_USER)))
        user = words, torch.tensor([N_USER])
        if join == "layer":
            yield from user_rows(row, family, kernel, user[0])
            yield row("user, all layers", partial(scorer.model.encode_users, *user), user_flops(shape, N_USER))
        states = scorer.model.encode_users(*user)
        flops = N_ITEMS * pair_flops(shape, N_USER, N_ITEM)
        assert scorer.one is not None  # there are items, and no GPU
        yield row(f"pairs, join: {join}", partial(scorer.one.logits, states, None), flops)


def user_rows(row: Callable[..., Any], family: Any, kernel: Any, ids: Any) -> Iterator[dict[str, Any]]:
    """The parts of a layer; `every layer` reads the weights of each, so they come from farther away."""
    layers: list[FusedLayer] = family.fused
    width, n_inner = family.hidden, family.backbone.config.intermediate_size
    hidden = family.embed(family.backbone.get_input_embeddings()(ids), torch.arange(N_USER), 0)
    projected = layers[0].project(hidden)
    heads = [part.view(1, N_USER, family.n_heads, -1) for part in projected]
    lengths = torch.tensor([N_USER])
    attended = kernel.attend_segments(*heads, lengths)
    of_qkv, of_rest = 6.0 * width**2 * N_USER, 2.0 * (width**2 + 2 * width * n_inner) * N_USER
    yield row("user, Q K V of a layer", lambda: layers[0].project(hidden), of_qkv)
    yield row("user, attention of a layer", lambda: kernel.attend_segments(*heads, lengths), 4.0 * width * N_USER**2)
    yield row("user, rest of a layer", lambda: layers[0].finish(hidden, attended, feed_forward=True), of_rest)
    every = [layer.finish for layer in layers]
    rest = row(
        "user, rest of every layer", lambda: [one(hidden, attended, feed_forward=True) for one in every], of_rest
    )
    yield {**rest, "us": rest["us"] / len(layers)}


def best(work: Callable[[], Any], n: int = 20) -> float:
    work()
    found = float("inf")
    for _ in range(n):
        started = time.thread_time()
        work()
        found = min(found, time.thread_time() - started)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
