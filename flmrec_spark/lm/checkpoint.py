"""A checkpoint folder: everything that scoring needs, nothing executable, every file under a SHA-256.

    manifest.json         format, digest of the whole, SHA-256 and size of each file
    flmrec.json           join, token budgets, tokens of a probe text, the effective config
    backbone/             the stock transformers model: config.json, model.safetensors or its shards
    head.safetensors      of each head w1, w2, the dot product's weight and the offset; the collaborative tokens' maps
    biases.parquet        kind (user, item), id, bias: the learned offsets; unknown ids have 0
    biases.train.parquet  the same before the valid split moved them, to judge that split by
    factors/              of a training with them: collaborative factors learned from the train and valid split
    factors.train/        the same learned from the train split alone, by which the valid split can be judged
    calibration.json      how probability and score come from the parts, see lm.blending
    template.yaml         the prompts, as they were in training
    tokenizer/            the tokenizer
    metrics.json          validation metrics and what training read
    adapter/              of a training with one: the adapter in peft's format; backbone/ has it merged already

A folder appears whole or not at all: it is written beside its place and renamed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from flmrec_spark.errors import CheckpointError, ConfigError
from flmrec_spark.lm import biases as bias_files
from flmrec_spark.lm import factor_files, folders, manifest
from flmrec_spark.lm.biases import Biases
from flmrec_spark.lm.blending import Blend
from flmrec_spark.lm.collaborative import Collaborative, FactorsOfSplits
from flmrec_spark.lm.families.loading import layout_of, load_backbone
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.segments import Segmenter
from flmrec_spark.prompts import Template, parse_template

FACTORS, TRAIN_FACTORS = "factors", "factors.train"
BIASES, TRAIN_BIASES = "biases.parquet", "biases.train.parquet"
_VOCABULARIES = (
    *("tokenizer.json", "vocab.txt", "vocab.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model"),
)


@dataclass(frozen=True)
class Settings:
    """What a model is besides its weights."""

    join: str
    join_layer: int
    user_tokens: int
    item_tokens: int
    history_length: int
    probe: list[int]  # tokens of segments.PROBE: the tokenizer is recognised by them
    has_listing: bool = False
    n_factors: int = 0  # numbers of a collaborative token; 0: segments have none
    taste_length: int = 0  # newest interactions that a taste is made of; 0: no factors

    @property
    def longest_history(self) -> int:
        """Newest interactions of a user that a score depends on."""
        return max(self.history_length, self.taste_length)


@dataclass(frozen=True)
class Checkpoint:
    """A verified folder. Reading a part again reads the disk again."""

    folder: Path
    digest: str
    settings: Settings
    template: Template
    blend: Blend
    new_users: Blend | None = None  # of users without history; None: as the others

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
            has_factors=settings.n_factors > 0,
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
            has_listing=settings.has_listing,
            n_factors=settings.n_factors,
        )
        file = self.folder / "head.safetensors"
        found, expected = _load_tensors(file), head_tensors(model)
        if set(found) != set(expected):
            raise CheckpointError(f"{file}: got {sorted(found)}, expected {sorted(expected)}")
        for name, tensor in expected.items():
            if found[name].shape != tensor.shape:
                raise CheckpointError(
                    f"{file}: {name}: got shape {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
                )
            tensor.copy_(found[name])
        return model.eval()

    def collaborative(self, *, of_train: bool = False) -> Collaborative | None:
        """Learned factors, or None; `of_train`: those that have not seen the valid split."""
        return factor_files.load(self.folder / (TRAIN_FACTORS if of_train else FACTORS))

    def biases(self, *, of_train: bool = False) -> Biases:
        """Learned offsets; `of_train`: those that have not seen the valid split."""
        return bias_files.load(self.folder / (TRAIN_BIASES if of_train else BIASES))


def save(
    folder: str | Path,
    *,
    model: SegmentedModel,
    segmenter: Segmenter,
    biases: Biases,
    train_biases: Biases | None = None,
    blend: Blend,
    metrics: Mapping[str, object],
    config: Mapping[str, object],
    new_users: Blend | None = None,
    factors: FactorsOfSplits | None = None,
    write_adapter: Callable[[Path], None] | None = None,
) -> str:
    """Writes a checkpoint, replacing one that is there; returns its digest.

    Without `train_biases`, `biases` know nothing of the valid split. Raises as `folders.expect_room` and `written` do.
    """
    target = Path(folder)
    folders.expect_room(target, mark=manifest.NAME)
    draft = folders.beside(target, ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    with folders.written(target):
        (draft / "backbone").mkdir(parents=True)
        model.backbone.save_pretrained(draft / "backbone")  # type: ignore[operator]
        segmenter.tokenizer.save_pretrained(draft / "tokenizer")
        save_file({name: one.contiguous() for name, one in head_tensors(model).items()}, draft / "head.safetensors")
        if factors is not None:
            for name, one in ((FACTORS, factors.whole), (TRAIN_FACTORS, factors.train)):
                (draft / name).mkdir()
                factor_files.save(draft / name, one)
        biases.save(draft / BIASES)
        (biases if train_biases is None else train_biases).save(draft / TRAIN_BIASES)
        (draft / "template.yaml").write_text(segmenter.template.to_yaml(), encoding="utf-8")
        settings = Settings(
            model.join,
            model.join_layer,
            segmenter.user_tokens,
            segmenter.item_tokens,
            segmenter.history_length,
            segmenter.probe(),
            has_listing=model.listing is not None,
            n_factors=model.user_token.in_features if model.user_token is not None else 0,
            taste_length=0 if factors is None else factors.whole.history_length,
        )
        manifest.write_json(draft / "flmrec.json", {"settings": asdict(settings), "config": dict(config)})
        told = {**blend.told(), "new_users": None if new_users is None else new_users.told()}
        manifest.write_json(draft / "calibration.json", told)
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
        told = manifest.read_json(path / "calibration.json")
        blend, new = Blend.of(told), None if told["new_users"] is None else Blend.of(told["new_users"])
        text = (path / "template.yaml").read_text(encoding="utf-8")
        template = parse_template(text, where=str(path / "template.yaml"))
    except (KeyError, TypeError, OSError, UnicodeDecodeError, ConfigError) as fault:
        raise CheckpointError(f"{path}: not this project's: {manifest.one_line(fault)}") from fault
    for one in filter(None, (blend, new)):
        if not one.is_sound:
            raise CheckpointError(f"{path / 'calibration.json'}: got {one}, expected a slope above 0, all finite")
    return Checkpoint(path, manifest.digest_of(path), settings, template, blend, new)


def head_tensors(model: SegmentedModel) -> dict[str, Tensor]:
    """What a model has besides its backbone, by name: the tensors themselves."""
    found = model.named_parameters()
    return {name: value.detach() for name, value in found if not name.startswith("backbone.")}


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
