"""What a scoring process holds: the unpacked bundle, the model and the catalogue, loaded once per process.

A bundle is one tar of the checkpoint's files and the items. It is unpacked once per executor, under its digest
and behind a lock, and verified there; the item states are computed by the first process that comes and mapped
into the memory of the others.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from filelock import FileLock

from flmrec_spark import columns as c
from flmrec_spark.errors import CheckpointError, EnvironmentFault
from flmrec_spark.lm import checkpoint, manifest
from flmrec_spark.lm.checkpoint import Biases, Checkpoint
from flmrec_spark.lm.scorer import Index, Scorer
from flmrec_spark.lm.segments import Segmenter, TokenBlock

ITEMS_FILE = "items.arrow"
TOKENS, IS_LISTED = "tokens", "is_listed"
_CHECKPOINT = "checkpoint"


def pack(checkpoint_folder: Path, items: pa.Table, target: Path) -> None:
    """Writes a bundle: the manifest's files and the items, which carry their tokens and whether they may be listed."""
    names = [manifest.NAME, *manifest.files(checkpoint_folder)]
    with tarfile.open(target, "w") as archive:
        for name in names:
            archive.add(checkpoint_folder / name, arcname=f"{_CHECKPOINT}/{name}")
        sink = io.BytesIO()
        with pa.ipc.new_file(sink, items.schema) as writer:
            writer.write_table(items)
        entry = tarfile.TarInfo(ITEMS_FILE)
        entry.size = sink.tell()
        sink.seek(0)
        archive.addfile(entry, sink)


def unpack(root: Path, digest: str, open_bundle: Callable[[], Any]) -> Path:
    """The bundle's folder on this executor, unpacked by the first process that asks.

    Args:
      root: folder of the executor.
      digest: name of the bundle.
      open_bundle: gives the tar as a binary stream; called by that first process alone.
    """
    root.mkdir(parents=True, exist_ok=True)
    folder = root / digest
    with FileLock(root / f"{digest}.lock"):
        if not folder.exists():
            draft = root / f"{digest}.draft"
            shutil.rmtree(draft, ignore_errors=True)
            with open_bundle() as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
                archive.extractall(draft, filter="data")
            manifest.verify(draft / _CHECKPOINT)  # raises CheckpointError when a byte was lost on the way
            draft.rename(folder)
    return folder


@dataclass(frozen=True)
class Catalogue:
    """The items of a bundle in the order of their ids: int-addressed, by place."""

    table: pa.Table

    @cached_property
    def ids(self) -> pa.Array:
        return self.table[c.ITEM_ID].combine_chunks()

    @cached_property
    def fields(self) -> list[dict[str, Any]]:
        return list(self.table.drop_columns([TOKENS, IS_LISTED]).to_pylist())

    @cached_property
    def listed(self) -> Index:
        """Places of the items that may be listed: the scorer's rows, in this order."""
        return np.flatnonzero(self.table[IS_LISTED].to_numpy())

    def places(self, ids: pa.Array) -> Index:
        """Place of each id, -1 for an unknown one."""
        found = pc.fill_null(pc.index_in(ids, value_set=self.ids), -1)
        return np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.intp)


@dataclass(frozen=True)
class Worker:
    """One process ready to score."""

    segmenter: Segmenter
    scorer: Scorer
    catalogue: Catalogue
    biases: Biases

    @cached_property
    def row_of_place(self) -> Index:
        """Scorer row of each place of the catalogue; -1 where the item may not be listed."""
        rows = np.full(len(self.catalogue.ids), -1, dtype=np.intp)
        rows[self.catalogue.listed] = np.arange(len(self.catalogue.listed))
        return rows


_LOADED: dict[tuple[str, str, str], Worker] = {}


def load(folder: Path, *, precision: str, device: str, threads: int) -> Worker:
    """The worker of a bundle, loaded once in this process; torch uses `threads` of the task's cores."""
    torch.set_num_threads(threads)
    key = (str(folder), precision, device)
    if key not in _LOADED:
        _LOADED.clear()  # a new run's model replaces the old one's memory
        _LOADED[key] = _load(folder, precision, device)
    return _LOADED[key]


def _load(folder: Path, precision: str, device: str) -> Worker:
    found = checkpoint.read(folder / _CHECKPOINT)
    try:
        with pa.memory_map(str(folder / ITEMS_FILE)) as source:
            catalogue = Catalogue(pa.ipc.open_file(source).read_all())
    except (OSError, pa.ArrowException) as fault:
        raise CheckpointError(f"{folder / ITEMS_FILE}: damaged: {fault}") from fault
    segmenter, biases = found.segmenter(), found.biases()
    listed = catalogue.table.filter(catalogue.table[IS_LISTED])
    tokens = segmenter.block(listed[TOKENS].to_pylist())
    item_bias = np.array([biases.item.get(item, 0.0) for item in listed[c.ITEM_ID].to_pylist()])
    scorer = _scorer(found, tokens, item_bias, folder / f"states-{precision}-{device}", precision, device)
    return Worker(segmenter, scorer, catalogue, biases)


def _scorer(found: Checkpoint, tokens: TokenBlock, item_bias: Any, states: Path, precision: str, device: str) -> Scorer:
    model = found.model()
    with FileLock(f"{states}.lock"):
        first = not states.exists()
        scorer = Scorer(
            model,
            tokens,
            calibration=found.calibration,
            item_bias=item_bias,
            precision=precision,
            device=device,
            states=None if first else states,
        )
        if first:
            draft = states.with_suffix(".draft")
            scorer.save_states(draft)
            draft.rename(states)
    return scorer


def device_of(addresses: Sequence[str] | None, visible: str | None) -> str:
    """The torch device of a task.

    Args:
      addresses: GPU addresses that Spark gave the task; None when it asked for none.
      visible: CUDA_VISIBLE_DEVICES, which wins: a cluster that sets it has already chosen.

    Raises:
      EnvironmentFault: a GPU was asked for and none is there.
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
        return "cuda:0"
    return f"cuda:{int(addresses[0])}"
