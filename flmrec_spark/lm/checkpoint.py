"""A checkpoint folder: everything that scoring needs, nothing executable, every file under a SHA-256.

    manifest.json         format, digest of the whole, SHA-256 and size of each file
    flmrec.json           join, token budgets, tokens of a probe text, the effective config
    backbone/             the stock transformers model: config.json, model.safetensors or its shards
    head.safetensors      w1, w2, the dot product's weight and the offset
    biases.parquet        kind (user, item), id, bias: the learned offsets; unknown ids have 0
    calibration.json      probability = sigmoid(slope * logit + intercept)
    template.yaml         the prompts, as they were in training
    tokenizer/            the tokenizer
    metrics.json          validation metrics and what training read
    adapter/              of a training with one: the adapter in peft's format; backbone/ has it merged already

A folder appears whole or not at all: it is written beside its place and renamed.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from flmrec_spark.errors import CheckpointError, ConfigError
from flmrec_spark.lm import folders, manifest
from flmrec_spark.lm.families.loading import layout_of, load_backbone
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.segments import Segmenter
from flmrec_spark.prompts import Template, parse_template

_HEAD = ("item_weight", "user_weight", "dot", "offset")
_VOCABULARIES = (
    *("tokenizer.json", "vocab.txt", "vocab.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model"),
)
_BIASES = pa.schema([("kind", pa.string()), ("id", pa.string()), ("bias", pa.float32())])


@dataclass(frozen=True)
class Settings:
    """What a model is besides its weights."""

    join: str
    join_layer: int
    user_tokens: int
    item_tokens: int
    history_length: int
    probe: list[int]  # tokens of segments.PROBE: the tokenizer is recognised by them


@dataclass(frozen=True)
class Calibration:
    """probability = sigmoid(slope * logit + intercept); slope > 0, so it never changes an order."""

    slope: float = 1.0
    intercept: float = 0.0

    def probability(self, logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Logits of any shape -> float64 in [0, 1] of the same shape."""
        scaled = self.slope * logits.astype(np.float64) + self.intercept
        return np.asarray(np.exp(-np.logaddexp(0.0, -scaled)))  # 0 and 1 only where float64 ends: no early ties


@dataclass(frozen=True)
class Biases:
    """Learned offsets on the logit by id; an id that training did not meet has 0."""

    user: Mapping[str, float]
    item: Mapping[str, float]


@dataclass(frozen=True)
class Checkpoint:
    """A verified folder. Reading a part again reads the disk again."""

    folder: Path
    digest: str
    settings: Settings
    template: Template
    calibration: Calibration

    def segmenter(self) -> Segmenter:
        """Raises CheckpointError when the tokenizer does not load or is not the one of the training."""
        settings = self.settings
        segmenter = Segmenter(
            load_tokenizer(self.folder / "tokenizer"),
            self.template,
            user_tokens=settings.user_tokens,
            item_tokens=settings.item_tokens,
            history_length=settings.history_length,
            layout=layout_of(self.folder / "backbone"),
        )
        if segmenter.probe() != settings.probe:
            raise CheckpointError(
                f"{self.folder / 'tokenizer'}: does not match the model: it reads a known text otherwise"
            )
        return segmenter

    def model(self) -> SegmentedModel:
        """The model with its weights, in eval mode, float32, on the CPU."""
        settings = self.settings
        model = SegmentedModel(
            load_backbone(self.folder / "backbone"),
            join=settings.join,
            join_layer=settings.join_layer,
            item_position=settings.user_tokens,
            item_tokens=settings.item_tokens,
        )
        head = _load_tensors(self.folder / "head.safetensors")
        if set(head) != set(_HEAD):
            raise CheckpointError(f"{self.folder / 'head.safetensors'}: got {sorted(head)}, expected {sorted(_HEAD)}")
        for name in _HEAD:
            parameter = getattr(model, name)
            if head[name].shape != parameter.shape:
                raise CheckpointError(
                    f"{self.folder / 'head.safetensors'}: {name}: got shape {tuple(head[name].shape)}, "
                    f"expected {tuple(parameter.shape)}"
                )
            parameter.data.copy_(head[name])
        return model.eval()

    def biases(self) -> Biases:
        try:
            table = pq.read_table(self.folder / "biases.parquet", schema=_BIASES)
        except (OSError, pa.ArrowException) as fault:
            raise CheckpointError(
                f"{self.folder / 'biases.parquet'}: not readable: {manifest.one_line(fault)}"
            ) from fault
        found: dict[str, dict[str, float]] = {"user": {}, "item": {}}
        for kind, key, bias in zip(*(table[name].to_pylist() for name in _BIASES.names), strict=True):
            found[kind][key] = bias
        return Biases(found["user"], found["item"])


def save(
    folder: str | Path,
    *,
    model: SegmentedModel,
    segmenter: Segmenter,
    biases: Biases,
    calibration: Calibration,
    metrics: Mapping[str, object],
    config: Mapping[str, object],
    write_adapter: Callable[[Path], None] | None = None,
) -> str:
    """Writes a checkpoint, replacing one that is there; returns its digest. Raises as `folders.expect_room` does."""
    target = Path(folder)
    folders.expect_room(target, mark=manifest.NAME)
    draft = target.with_name(target.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    (draft / "backbone").mkdir(parents=True)
    model.backbone.save_pretrained(draft / "backbone")  # type: ignore[operator]
    segmenter.tokenizer.save_pretrained(draft / "tokenizer")
    save_file({name: getattr(model, name).detach().contiguous() for name in _HEAD}, draft / "head.safetensors")
    rows = [("user", *pair) for pair in sorted(biases.user.items())] + [
        ("item", *pair) for pair in sorted(biases.item.items())
    ]
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[], [], []]
    pq.write_table(pa.table(columns, schema=_BIASES), draft / "biases.parquet")
    (draft / "template.yaml").write_text(segmenter.template.to_yaml(), encoding="utf-8")
    settings = Settings(
        model.join,
        model.join_layer,
        segmenter.user_tokens,
        segmenter.item_tokens,
        segmenter.history_length,
        segmenter.probe(),
    )
    manifest.write_json(draft / "flmrec.json", {"settings": asdict(settings), "config": dict(config)})
    manifest.write_json(draft / "calibration.json", asdict(calibration))
    manifest.write_json(draft / "metrics.json", dict(metrics))
    if write_adapter is not None:
        write_adapter(draft / "adapter")
    digest = manifest.write(draft)
    folders.replace(target, draft)
    return digest


def load(folder: str | Path) -> Checkpoint:
    """Verifies a folder and reads all of it but the weights.

    Raises:
      CheckpointError: the folder or a file of it is missing, damaged, of another format or not of this project.
    """
    path = folders.present(Path(folder))
    manifest.verify(path)
    return read(path)


def read(folder: str | Path) -> Checkpoint:
    """As `load`, of a folder that was verified before."""
    path = Path(folder)
    try:
        settings = Settings(**manifest.read_json(path / "flmrec.json")["settings"])
        calibration = Calibration(**manifest.read_json(path / "calibration.json"))
        text = (path / "template.yaml").read_text(encoding="utf-8")
        template = parse_template(text, where=str(path / "template.yaml"))
    except (KeyError, TypeError, OSError, UnicodeDecodeError, ConfigError) as fault:
        raise CheckpointError(f"{path}: not this project's: {manifest.one_line(fault)}") from fault
    if not (calibration.slope > 0 and math.isfinite(calibration.slope) and math.isfinite(calibration.intercept)):
        raise CheckpointError(f"{path / 'calibration.json'}: got slope {calibration.slope}, expected above 0, finite")
    return Checkpoint(path, manifest.digest_of(path), settings, template, calibration)


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a local folder. Raises CheckpointError when it does not load."""
    path = Path(folder)
    if not path.is_dir():
        raise CheckpointError(f"{path}: not found, expected a folder with a tokenizer")
    if not any((path / name).is_file() for name in _VOCABULARIES):  # transformers would make up an empty one
        raise CheckpointError(f"{path}: got no tokenizer, expected one of {', '.join(_VOCABULARIES)}")
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        raise CheckpointError(f"{path}: no tokenizer loads from it: {manifest.one_line(fault)}") from fault


def read_metrics(folder: str | Path) -> dict[str, Any]:
    """metrics.json of a checkpoint that may not be there: {} then."""
    path = folders.present(Path(folder)) / "metrics.json"
    return manifest.read_json(path) if path.is_file() else {}


def _load_tensors(file: Path) -> dict[str, Any]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as fault:
        raise CheckpointError(f"{file}: damaged: {manifest.one_line(fault)}") from fault
