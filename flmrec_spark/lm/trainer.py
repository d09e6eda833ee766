"""The training itself: what it reads, the model it starts from, one step, one validation, one resume point."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from flmrec_spark import columns as c
from flmrec_spark.config import Config
from flmrec_spark.errors import ConfigError, InputError
from flmrec_spark.lm import checkpoint, dataset, resume, training
from flmrec_spark.lm.batches import Negatives, Step, epoch_order, make_step
from flmrec_spark.lm.checkpoint import Biases
from flmrec_spark.lm.dataset import Catalog, Examples, Index, Prepared
from flmrec_spark.lm.families.loading import head_rows, layout_of, load_backbone
from flmrec_spark.lm.families.registry import family_of
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.precision import resolve
from flmrec_spark.lm.segments import Segmenter
from flmrec_spark.lm.validation import Validation, validate
from flmrec_spark.prompts import load_template

log = logging.getLogger("flmrec")

_LOWER_IS_BETTER = {"log_loss"}


@dataclass(frozen=True)
class Data:
    """Everything that the loop reads."""

    segmenter: Segmenter
    catalog: Catalog
    user_ids: list[str]
    train: Examples
    valid: Examples
    negatives: Negatives
    seen: Index  # sorted keys user * N + item of the train split


def load_data(config: Config, prepared: Prepared) -> Data:
    """Renders and tokenises the prepared tables.

    Raises:
      ConfigError: the template names an attribute that the tables lack.
      InputError: no train example, or no valid one to stop and calibrate by.
      CheckpointError: the pretrained folder has no tokenizer.
    """
    segmenter = load_segmenter(config)
    segmenter.template.check(
        item_fields=[c.TITLE, c.ITEM_ID, *prepared.fields("items")], user_fields=prepared.fields("users")
    )
    catalog = dataset.catalog(prepared.tables["items"], segmenter)
    user_ids = sorted(prepared.tables["users"][c.USER_ID].to_pylist())
    width = config.prepare.targets_per_example
    train = dataset.examples(prepared, c.TRAIN, catalog, segmenter, width=width, user_ids=user_ids)
    valid = dataset.examples(prepared, c.VALID, catalog, segmenter, width=None, user_ids=user_ids)
    for split, rows in ((c.TRAIN, train), (c.VALID, valid)):
        if not len(rows):
            raise InputError(f"table examples: got no usable row of split {split}, expected some; see prepare.split")
    chosen = np.random.default_rng([config.finetune.seed, 3]).permutation(len(valid))[: config.finetune.valid_users]
    seen = dataset.seen(prepared, catalog, user_ids, splits=[c.TRAIN])
    counts, _ = dataset.counts(prepared, c.ITEM_ID, catalog.item_ids, splits=[c.TRAIN])
    negatives = Negatives.of(counts, power=config.finetune.negative_power, known=seen, drawable=catalog.is_known)
    return Data(segmenter, catalog, user_ids, train, valid.take(np.sort(chosen)), negatives, seen)


def load_segmenter(config: Config) -> Segmenter:
    """The template and the pretrained tokenizer, with the marks of the pretrained model's family.

    Raises:
      ConfigError: the template is not usable, or a budget has no room beside the marks.
      CheckpointError: the pretrained folder has no tokenizer or no known model.
    """
    template = load_template(config.prompts.template)
    return Segmenter(
        checkpoint.load_tokenizer(config.model.path),
        template,
        user_tokens=config.prompts.user_tokens,
        item_tokens=config.prompts.item_tokens,
        history_length=config.prompts.history_length,
        layout=layout_of(config.model.path),
    )


def build_model(config: Config, segmenter: Segmenter) -> SegmentedModel:
    """The pretrained backbone with a new head.

    `model.head: answer` starts the head at the difference of the language head's rows for yes and no, so that an
    untrained logit is that of yes minus that of no.

    Raises:
      ConfigError: a setting does not fit the family, or the template has no usable answer.
      CheckpointError: the pretrained folder is not usable.
    """
    backbone = load_backbone(config.model.path, dropout=config.finetune.dropout)
    n_layers = family_of(backbone).n_layers
    join_layer = n_layers - 1 if config.model.join_layer == "last" else config.model.join_layer
    if config.model.join == "attention":
        join_layer = n_layers - 1
    model = SegmentedModel(
        backbone,
        join=config.model.join,
        join_layer=join_layer,
        item_position=config.prompts.user_tokens,
        item_tokens=config.prompts.item_tokens,
    )
    if config.model.head == "answer":
        if segmenter.layout.kind == "encoder":
            raise ConfigError("model.head: got answer, expected linear: an encoder has no next word")
        (yes, no), bias = head_rows(config.model.path, backbone, segmenter.answers())
        model.start_head(yes - no, float(bias[0] - bias[1]))
    return model


class Trainer:
    """One training: its state is the modules, the optimizer and how far it is."""

    def __init__(self, config: Config, prepared: Prepared, data: Data) -> None:
        settings = config.finetune
        torch.manual_seed(settings.seed)
        self.config, self.data = config, data
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = build_model(config, data.segmenter).to(self.device)
        self.bias = self._bias_terms(prepared, [c.TRAIN]).to(self.device)
        self.optimizer = training.optimizer(self.model, self.bias, settings)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.precision = resolve(settings.precision, device=self.device.type)
        per_epoch = -(-len(data.train) // settings.examples_per_step)
        self.n_steps = min(settings.max_steps or sys.maxsize, settings.epochs * per_epoch)
        self.rate_factor = training.rate_factor(settings, self.n_steps)
        self.validate_every = settings.validate_every or per_epoch
        self.step = 0
        self.best: float | None = None
        self.n_worse = 0
        self.history: list[dict[str, float]] = []

    def _bias_terms(self, prepared: Prepared, splits: list[str]) -> training.BiasTerms:
        if not self.config.model.bias_terms:
            return training.BiasTerms(None, None)
        users = dataset.counts(prepared, c.USER_ID, self.data.user_ids, splits=splits)
        items = dataset.counts(prepared, c.ITEM_ID, self.data.catalog.item_ids, splits=splits)
        return training.BiasTerms(users, items)

    def biases(self, prepared: Prepared) -> Biases:
        """The learned offsets, moved by what the valid split adds to the counts that they started from.

        Once training has stopped and calibration is fitted, the valid split has nothing left to hold out: an item
        that many disliked there should not be listed as if nobody had said so.
        """
        before, after = (self._bias_terms(prepared, splits) for splits in ([c.TRAIN], [c.TRAIN, c.VALID]))
        latest = training.BiasTerms(None, None)
        for name in ("user", "item"):
            moved = getattr(self.bias, name).detach().cpu() + getattr(after, name) - getattr(before, name)
            setattr(latest, name, nn.Parameter(moved.detach()))
        return latest.named(self.data.user_ids, self.data.catalog.item_ids)

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model, "bias": self.bias}

    def steps(self) -> Iterator[Step]:
        """The steps from where the training is to its end."""
        settings, data, number = self.config.finetune, self.data, 0
        lengths = np.array([len(prefix) for prefix in data.train.prefixes])
        for epoch in range(settings.epochs):
            for rows in epoch_order(lengths, per_step=settings.examples_per_step, seed=settings.seed, epoch=epoch):
                if self.step <= number < self.n_steps:
                    yield make_step(
                        rows,
                        data.train,
                        data.segmenter,
                        data.negatives,
                        n_negatives=settings.negatives,
                        seed=settings.seed,
                        number=number,
                    )
                number += 1

    def learn(self, step: Step) -> float:
        """One optimizer step; returns its loss. Every draw depends on the seed and the step's number alone."""
        settings = self.config.finetune
        torch.manual_seed(settings.seed * 1_000_003 + self.step)
        self.model.train()
        self.bias.train()
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.rate_factor(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in step.split(settings.accumulate_steps):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                logits = training.step_logits(
                    self.model, self.bias, part, self.data.catalog.tokens, bias_dropout=settings.bias_dropout
                )
            log_share = self.data.negatives.log_share
            value = training.loss(logits.float(), part, whole=step, log_share=log_share, config=settings)
            value.backward()  # type: ignore[no-untyped-call]
            total += float(value.detach())
        everything = [*self.model.parameters(), *self.bias.parameters()]
        nn.utils.clip_grad_norm_(everything, settings.clip_norm)
        self.optimizer.step()
        self.step += 1
        return total

    def validate(self) -> Validation:
        data = self.data
        self.bias.eval()
        return validate(self.model, self.bias, data.valid, data.catalog, seen=data.seen, precision=self.precision)

    def is_best(self, found: Validation) -> bool:
        """Notes a validation; true when its metric is the best so far."""
        name = self.config.finetune.early_stopping.metric
        value = found.metrics[name] * (-1 if name in _LOWER_IS_BETTER else 1)
        self.history.append({"step": self.step, **found.metrics})
        if np.isnan(value):
            log.warning("finetune: %s is not defined on the valid split: no early stopping, the last weights win", name)
        better = self.best is None or value > self.best or np.isnan(self.best)
        self.best, self.n_worse = (value, 0) if better else (self.best, self.n_worse + 1)
        return better

    def save(self, folder: Path, key: str) -> None:
        progress = {"step": self.step, "best": self.best, "n_worse": self.n_worse, "history": self.history, "key": key}
        progress["precision"] = self.precision
        resume.save_state(folder, self.modules, self.optimizer, progress)

    def resume(self, folder: Path, key: str) -> None:
        """Goes back to a resume point of the same training, when there is one."""
        if resume.key_of(folder) == key:
            progress = resume.load_state(folder, self.modules, self.optimizer)
            self.step, self.n_worse = int(progress["step"]), int(progress["n_worse"])  # type: ignore[call-overload]
            self.best, self.history = progress["best"], progress["history"]  # type: ignore[assignment]
            self.precision = str(progress["precision"])  # `auto` might measure otherwise today
            log.info("finetune: resumed at step %d of %d", self.step, self.n_steps)
