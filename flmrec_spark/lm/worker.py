"""What a scoring process holds: the unpacked bundle, the model and the catalogue, loaded once per process.

The item states are computed once per executor, by all of its processes together, and mapped into the memory of each.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from flmrec_spark import columns as c
from flmrec_spark.errors import CheckpointError, EnvironmentFault
from flmrec_spark.lm import bundles, checkpoint, item_states, native
from flmrec_spark.lm.checkpoint import Checkpoint
from flmrec_spark.lm.judge import Judge, Rules
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.native import Kernel
from flmrec_spark.lm.scorer import Index, Scorer
from flmrec_spark.lm.segments import Segmenter
from flmrec_spark.lm.token_block import TokenBlock

log = logging.getLogger("flmrec")

TOKENS, IS_LISTED = "_flmrec_tokens", "_flmrec_is_listed"  # beside columns of any name


@dataclass(frozen=True)
class Catalogue:
    """The items of a bundle in the order of their ids: int-addressed, by place."""

    table: pa.Table

    @cached_property
    def ids(self) -> pa.Array:
        return self.table[c.ITEM_ID].combine_chunks().cast(pa.string())  # large where Spark is told so

    @cached_property
    def fields(self) -> list[dict[str, Any]]:
        return list(self.table.drop_columns([TOKENS, IS_LISTED]).to_pylist())

    @cached_property
    def listed(self) -> Index:
        """Places of the items that may be listed: the scorer's rows, in this order."""
        return np.flatnonzero(self.table[IS_LISTED].to_numpy())

    def places(self, ids: pa.Array) -> Index:
        """Place of each id, -1 for an unknown one."""
        found = pc.fill_null(pc.index_in(ids.cast(pa.string()), value_set=self.ids), -1)
        return np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.intp)


@dataclass(frozen=True)
class Worker:
    """One process ready to score."""

    segmenter: Segmenter
    scorer: Scorer
    catalogue: Catalogue
    judge: Judge

    @cached_property
    def row_of_place(self) -> Index:
        """Scorer row of each place of the catalogue; -1 where the item may not be listed."""
        rows = np.full(len(self.catalogue.ids), -1, dtype=np.intp)
        rows[self.catalogue.listed] = np.arange(len(self.catalogue.listed))
        return rows


class Means(TypedDict):
    """What a process multiplies with; arguments of a Scorer."""

    precision: str
    device: str
    packed: bool
    kernel: Kernel | None


_LOADED: dict[tuple[str, str, bool, str, bool], Worker] = {}
_LOADS: list[str] = []  # device of every model that this process has loaded


def use_threads(n: int) -> None:
    """torch uses n threads of this process from now on: the cores that Spark gave the task."""
    torch.set_num_threads(n)


def load(folder: Path, *, precision: str, packed: bool, device: str, of_train: bool = False) -> Worker:
    """The worker of a bundle, loaded once in this process; `of_train` as `judge.Rules.of`."""
    packed = packed and device == "cpu"
    key = (str(folder), precision, packed, device, of_train)
    if key not in _LOADED:
        _LOADED.clear()  # a new run's model replaces the old one's memory
        _LOADED[key] = _load(folder, precision, packed, device, of_train)
        _LOADS.append(device)
    return _LOADED[key]


def n_loads() -> int:
    """How often this process has loaded a model: once in a run, unless a second model came between."""
    return len(_LOADS)


def opened(folder: Path) -> tuple[Checkpoint, Catalogue]:
    """What an unpacked bundle holds. Raises CheckpointError when its items are damaged."""
    try:
        with pa.memory_map(str(folder / bundles.ITEMS_FILE)) as source:
            catalogue = Catalogue(pa.ipc.open_file(source).read_all())
    except (OSError, pa.ArrowException) as fault:
        raise CheckpointError(f"{folder / bundles.ITEMS_FILE}: damaged: {fault}") from fault
    return checkpoint.read(folder / bundles.CHECKPOINT), catalogue


def kernel_of(folder: Path, device: str) -> Kernel | None:
    """The kernel of an unpacked bundle; None on a GPU, without a library, or where this CPU cannot run it."""
    built = native.bundled(folder) if device == "cpu" else None
    kernel = native.load(built)
    if built is not None and kernel is None:
        log.warning("score: this CPU lacks what the driver's kernel needs (%s): torch attends, slower", built.level)
    return kernel


def _load(folder: Path, precision: str, packed: bool, device: str, of_train: bool) -> Worker:
    found, catalogue = opened(folder)
    segmenter, rules = found.segmenter(), Rules.of(found, of_train=of_train)
    listed = catalogue.table.filter(catalogue.table[IS_LISTED])
    ids = listed[c.ITEM_ID].combine_chunks()
    tokens, model = segmenter.block(listed[TOKENS].to_pylist()), found.model()
    items = rules.of_items(ids, tokens, model)
    if items is not None and rules.has_tokens:
        tokens = replace(tokens, factors=items.vectors)
    item_bias = rules.item_bias(ids.to_pylist())
    kernel = kernel_of(folder, device)
    edition = "-train" if of_train and rules.has_tokens else ""  # else the states know nothing of factors
    form = f"{'packed' if packed else 'plain'}-{'torch' if kernel is None else 'kernel'}{edition}"
    means: Means = {"precision": precision, "device": device, "packed": packed, "kernel": kernel}
    scorer = _scorer(found, model, tokens, item_bias, folder / f"states-{precision}-{form}-{device}", means)
    places = None if rules.factors is None else rules.factors.places(catalogue.ids)
    return Worker(segmenter, scorer, catalogue, Judge(scorer, rules, items, places))


def _scorer(
    found: Checkpoint,
    model: SegmentedModel,
    tokens: TokenBlock,
    item_bias: Any,
    states: Path,
    means: Means,
) -> Scorer:
    if model.join != "full" and not states.exists():
        _make_states(model, tokens, states, means)
    # The first process maps the file too: where a tensor lies in memory decides the last bits of a product.
    return Scorer(
        model,
        tokens,
        calibration=found.blend.calibration,
        item_bias=item_bias,
        **means,
        states=None if model.join == "full" else states,
    )


def _make_states(model: SegmentedModel, tokens: TokenBlock, states: Path, means: Means) -> None:
    # On its own, so that the encoder's copy of the weights is gone before the scorer makes its own.
    encoder = Scorer(model, tokens.take(np.arange(0)), **means)
    item_states.make(tokens, states, encode=encoder.encode, write=encoder.save_states)


def use_device(device: str) -> None:
    """Makes a GPU the current one: Triton launches on that, and events without a stream are of it."""
    if device != "cpu":
        torch.cuda.set_device(device)


def device_of(addresses: Sequence[str] | None, visible: str | None) -> str:
    """The torch device of a task.

    Args:
      addresses: GPU addresses that Spark gave the task; none from a local master; None when it asked for none.
      visible: CUDA_VISIBLE_DEVICES: torch counts what it names, so an address is looked up in it; one that is not
        there counts among them.

    Raises:
      EnvironmentFault: a GPU was asked for and none is there, or the address is none of them.
    """
    if addresses is None:
        return "cpu"
    if not torch.cuda.is_available():
        raise EnvironmentFault(
            "score.gpus_per_task: got a GPU from Spark, but torch finds no CUDA device on the executor"
        )
    if visible is not None:
        if not visible.strip():
            raise EnvironmentFault("CUDA_VISIBLE_DEVICES: got nothing, expected a device for score.gpus_per_task")
        named = [name.strip() for name in visible.split(",")]
        if not addresses:
            return "cuda:0"
        if addresses[0] in named:
            return f"cuda:{named.index(addresses[0])}"
        if addresses[0].isdigit() and int(addresses[0]) < len(named):
            return f"cuda:{int(addresses[0])}"
        if len(named) == 1:  # a container shows its own alone
            return "cuda:0"
        raise EnvironmentFault(f"CUDA_VISIBLE_DEVICES: got {visible}, expected Spark's GPU {addresses[0]} among them")
    return f"cuda:{int(addresses[0])}" if addresses else "cuda:0"
