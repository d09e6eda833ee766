"""Pairs per second of every join beside what people run today, on one machine in one run; Spark is not needed.

    python benchmarks/scoring.py [--model build/demo/model] [--shapes MiniLM-L6 ...] [--json FILE]

Every form scores the same users of P tokens and items of S tokens. A user's states are made anew, an item's are there
already; `pairs alone` is what is left when the user's are there too. `fraction_of_peak` counts the useful operations
of each form's own algorithm (`lm.flops`), on real tokens, against this machine's measured matrix product in the same
precision. A shape without --model has random weights, and CrossEncoder, which needs a tokenizer, is left out. On a CUDA
machine everything runs on the GPU in bf16, in several shapes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flmrec_spark.lm import native
from flmrec_spark.lm.families.registry import ENCODER_DECODERS, FAMILIES
from flmrec_spark.lm.flops import pair_flops, shape_of, user_flops
from flmrec_spark.lm.machine import calls_per_second, describe, show, write
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.native import Kernel
from flmrec_spark.lm.precision import DTYPES
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.shapes import SHAPES, load
from flmrec_spark.lm.token_block import TokenBlock

FIRST_ID, LAST_ID = 1000, 20000  # ids of whole words in BERT's English vocabulary
ON_GPU = ("MiniLM-L6", "BERT-base", "Qwen3-0.6B")
BATCHES = {"cpu": (16, 32, 64, 128), "cuda": (128, 512, 2048)}

Row = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.cpu_time:
        torch.set_num_threads(1)
    machine = describe(device)
    random = np.random.default_rng(1)
    n_users = 64 if device == "cpu" else 512
    users = random.integers(FIRST_ID, LAST_ID, (n_users, arguments.user_tokens)).tolist()
    ids = random.integers(FIRST_ID, LAST_ID, (arguments.items, arguments.item_tokens), dtype=np.int32)
    run = Run(arguments, machine, device, users, TokenBlock(ids, np.full(len(ids), arguments.item_tokens, np.int32)))
    rows: list[Row] = []
    for name in arguments.shapes or (["MiniLM-L6"] if device == "cpu" else list(ON_GPU)):
        if SHAPES[name]["model_type"] in FAMILIES:
            rows += run.shape_rows(name)
        else:
            print(f"{name}: left out: family {SHAPES[name]['model_type']} is not known", file=sys.stderr)
    show(f"P = {arguments.user_tokens}, S = {arguments.item_tokens}, {machine['cpu']}, {machine['device']}", rows)
    write(arguments.json, machine, rows)
    return 0


class Run:
    """One machine, one set of users and items."""

    def __init__(
        self, arguments: argparse.Namespace, machine: Row, device: str, users: list[list[int]], items: TokenBlock
    ) -> None:
        self.arguments, self.machine, self.device = arguments, machine, device
        self.users, self.items = users, items
        self.kernel = native.load(native.build()) if device == "cpu" else None
        self.precisions = arguments.precisions or (list(DTYPES) if device == "cpu" else ["bf16"])

    def shape_rows(self, name: str) -> list[Row]:
        """Every row of a shape; its ratios are to CrossEncoder in float32, or in bf16 on a GPU, where it ran."""
        prefix = "" if name == "MiniLM-L6" else f"{name}: "
        folder = self.arguments.model if name == "MiniLM-L6" else None
        rows = [*self.cross_encoder_rows(folder), *self.stock_rows(name, folder)]
        rows += self.own_rows(name, folder)
        base = next((row["pairs_per_s"] for row in rows if row["name"].startswith("CrossEncoder")), None)
        for row in rows:
            row["name"] = prefix + row["name"]
            row["ratio_to_cross_encoder"] = None if base is None else row["pairs_per_s"] / base
        return rows

    def own_rows(self, name: str, folder: str | None) -> Iterator[Row]:
        """Each form of this project; users are encoded and items scored, items' own states are there already."""
        n_layers = load(name, folder).config.num_hidden_layers
        some = range(n_layers + 1) if n_layers <= 6 else (0, n_layers // 2, n_layers - 1, n_layers)
        early = self.arguments.layers or some
        for join, layer in [*[("layer", layer) for layer in early], ("attention", n_layers - 1)]:
            for precision in self.precisions:
                if precision != "int8":
                    yield from self.own_form(load(name, folder), join, layer, precision, None)
                if self.kernel is not None and (precision != "int8" or self.kernel.multiplies_bytes):
                    yield from self.own_form(load(name, folder), join, layer, precision, self.kernel)

    def own_form(
        self, backbone: Any, join: str, join_layer: int, precision: str, kernel: Kernel | None
    ) -> Iterator[Row]:
        """Users and items; for a last-layer join by the kernel also the pairs alone, the user's states being there."""
        n_user, n_item, n_items = self.arguments.user_tokens, self.arguments.item_tokens, len(self.items)
        places = {"item_position": n_user, "item_tokens": n_item}
        model = SegmentedModel(backbone, join=join, join_layer=join_layer, **places).train(False)
        ways: dict[str, Any] = {"precision": precision, "device": self.device}
        scorer = Scorer(model, self.items, packed=kernel is not None, kernel=kernel, **ways)
        n_threads = torch.get_num_threads() if kernel is not None else 1
        shape = shape_of(backbone.config, join=join, join_layer=join_layer)
        of_pair, of_user = pair_flops(shape, n_user, n_item), user_flops(shape, n_user)
        rate = self.own_rate(scorer, n_items, n_threads)
        name = "flmrec, torch alone" if kernel is None and scorer.batches is None else "flmrec"
        yield self.row(name, precision, join, join_layer, rate, of_user / n_items + of_pair)
        if scorer.is_last and name == "flmrec":
            rate = self.pairs_rate(scorer, n_items, n_threads)
            yield self.row("flmrec, pairs alone", precision, join, join_layer, rate, of_pair)

    def pairs_rate(self, scorer: Scorer, n_items: int, n_threads: int) -> float:
        """As `own_rate`, the users' states being there: of one user on a CPU, of a step of them on a GPU."""
        own: Any = scorer.batches
        n_users = 1 if own is None else min(len(self.users), own.step_tokens // n_items)
        ids = torch.tensor(self.users[:n_users], device=self.device)
        known = torch.inference_mode()(scorer.model.encode_users)(ids, torch.full_like(ids[:, 0], ids.shape[1]))
        join: Any = scorer.one or own.join
        asked = (known, None) if own is None else (known, 0, n_items)
        score = torch.inference_mode()(lambda _: join.logits(*asked).cpu())
        return self.measure(score, n_items * n_users, n_threads)

    def own_rate(self, scorer: Scorer, n_items: int, n_threads: int) -> float:
        """Users one by one on a CPU; on a GPU, which takes many at a time, all of them in a call."""
        users = self.users
        if self.device == "cpu":
            return self.measure(lambda number: scorer.logits(users[number % len(users)]), n_items, n_threads)
        every = [(user, None) for user in users]
        return self.measure(lambda _: deque(scorer.head_logits_each(every), 0), n_items * len(users))

    def stock_rows(self, name: str, folder: str | None) -> Iterator[Row]:
        """The stock transformers forward on whole pairs, padded to one length, at its best batch size."""
        tokens = self.arguments.user_tokens + self.arguments.item_tokens
        for precision in (kind for kind in self.precisions if kind != "int8"):
            backbone = load(name, folder).to(self.device, DTYPES[precision])
            rates = [self.measure(self.pairs_of(backbone, size), size) for size in BATCHES[self.device]]
            shape = shape_of(backbone.config, join="full", join_layer=0)
            yield self.row("stock forward", precision, "full", None, max(rates), float(pair_flops(shape, tokens, 0.0)))

    def pairs_of(self, backbone: Any, size: int) -> Callable[[int], Any]:
        """A function of a number that runs `size` pairs of one user through the stock model."""
        chosen = torch.from_numpy(np.resize(self.items.ids, (size, self.items.ids.shape[1]))).long()

        @torch.inference_mode()
        def run(number: int) -> Any:
            user = torch.tensor(self.users[number % len(self.users)]).expand(size, -1)
            return backbone(torch.cat([user, chosen], 1).to(self.device)).last_hidden_state[:, 0].cpu()

        return run

    def cross_encoder_rows(self, folder: str | None) -> Iterator[Row]:
        """CrossEncoder.predict, which sorts by length itself, at its best batch size; and its ONNX int8 backend."""
        if folder is None:
            print("CrossEncoder: left out: it needs --model", file=sys.stderr)
            return
        try:
            from sentence_transformers import CrossEncoder
        except ImportError as fault:
            print(f"CrossEncoder: left out: {fault}", file=sys.stderr)
            return
        longest = self.arguments.user_tokens + self.arguments.item_tokens  # with its marks, as in every other row
        settings: Row = {"num_labels": 1, "max_length": longest, "device": self.device, "local_files_only": True}
        encoder = CrossEncoder(folder, **settings)
        for precision in (kind for kind in self.precisions if kind != "int8"):
            encoder.model.to(DTYPES[precision])
            yield self.predict_row(encoder, "CrossEncoder.predict", precision)
        if self.device == "cpu":
            with tempfile.TemporaryDirectory() as copy:
                shutil.copytree(folder, copy, dirs_exist_ok=True)
                try:
                    quantized = _onnx_int8(Path(copy), settings)
                except (ImportError, OSError, ValueError, RuntimeError) as fault:
                    print(f"CrossEncoder ONNX int8: left out: {fault}", file=sys.stderr)
                    return
                yield self.predict_row(quantized, "CrossEncoder.predict ONNX", "int8")

    def predict_row(self, encoder: Any, name: str, precision: str) -> Row:
        texts = [
            [encoder.tokenizer.decode(row) for row in part]
            for part in (self.users, np.resize(self.items.ids, (max(BATCHES[self.device]), self.items.ids.shape[1])))
        ]

        def predict(number: int, size: int) -> Any:
            pairs = [(texts[0][number % len(texts[0])], text) for text in texts[1]]
            return encoder.predict(pairs, batch_size=size, show_progress_bar=False)

        rates = {
            size: self.measure(lambda number, size=size: predict(number, size), len(texts[1]))  # type: ignore[misc]
            for size in BATCHES[self.device]
        }
        best = max(rates, key=lambda size: rates[size])
        return self.row(f"{name}, batch {best}", precision, "full", None, rates[best], None)

    def row(
        self, name: str, precision: str, join: str, join_layer: int | None, rate: float, flops: float | None
    ) -> Row:
        peak = self.machine["peak_gflops"].get(precision)
        print(f"{name}, {precision}, {join} {join_layer}: {rate:,.0f} pairs/s", file=sys.stderr, flush=True)
        row = {"name": name, "precision": precision, "join": join, "join_layer": join_layer, "pairs_per_s": rate}
        of_peak = None if flops is None or peak is None else rate * flops / (peak * 1e9)
        return row | {"ratio_to_cross_encoder": None, "fraction_of_peak": of_peak}

    def measure(self, work: Callable[[int], Any], n_pairs: int, n_threads: int = 1) -> float:
        """Pairs per second; each call's result comes back to the CPU."""
        clock = time.process_time if self.arguments.cpu_time else time.perf_counter
        return n_pairs * calls_per_second(work, self.arguments.seconds, n_threads=n_threads, clock=clock)


def _onnx_int8(folder: Path, settings: dict[str, Any]) -> Any:
    import onnxruntime  # noqa: F401  # sentence-transformers raises a bare Exception where it is missing
    from sentence_transformers import CrossEncoder, export_dynamic_quantized_onnx_model

    plain = CrossEncoder(str(folder), backend="onnx", **settings)
    export_dynamic_quantized_onnx_model(plain, "avx512_vnni", str(folder))
    (file,) = folder.rglob("*qint8*.onnx")
    settings = {**settings, "model_kwargs": {"file_name": str(file.relative_to(folder))}}
    return CrossEncoder(str(folder), backend="onnx", **settings)


def _of_one_stack() -> list[str]:
    return [name for name, values in SHAPES.items() if values["model_type"] not in ENCODER_DECODERS]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scoring.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", metavar="FOLDER", help="pretrained model for the shape MiniLM-L6; else random weights")
    add("--shapes", nargs="+", choices=_of_one_stack(), help="MiniLM-L6 on a CPU")
    add("--precisions", nargs="+", choices=DTYPES, help="all on a CPU, bf16 on a GPU")
    add("--layers", nargs="+", type=int, metavar="L", help="values of join_layer; all of a small model")
    add("--user-tokens", type=int, default=100, metavar="P")
    add("--item-tokens", type=int, default=12, metavar="S")
    add("--items", type=int, default=2048, metavar="N")
    add("--seconds", type=float, default=3.0, help="measured time of each row")
    add("--cpu-time", action="store_true", help="of one core, by its CPU time: for a machine that others use too")
    add("--json", metavar="FILE")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
