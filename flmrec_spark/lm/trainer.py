"""The training itself: what it reads, the model it starts from, one step, one validation, one resume point."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from flmrec_spark import columns as c
from flmrec_spark.config import Config
from flmrec_spark.lm import dataset, factor_stage, resume, training
from flmrec_spark.lm.adapters import Adapter, merge
from flmrec_spark.lm.batches import Step, epoch_order, make_step
from flmrec_spark.lm.collaborative import FactorsOfSplits
from flmrec_spark.lm.distributed import World
from flmrec_spark.lm.loading import Data
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.offsets import Offsets
from flmrec_spark.lm.precision import resolve
from flmrec_spark.lm.preflight import expect_room, step_shape
from flmrec_spark.lm.prepared import Prepared
from flmrec_spark.lm.starting import build_model, expect_fit
from flmrec_spark.lm.stopping import VALIDATE_EVERY, Stopping, expect_finite
from flmrec_spark.lm.teacher import Teacher, soft_loss
from flmrec_spark.lm.terms import Terms
from flmrec_spark.lm.training_factors import TrainingFactors, tastes_of_train, with_texts_of
from flmrec_spark.lm.validation import Validation, validate

log = logging.getLogger("flmrec")


class Trainer:
    """One training: its state is the modules, the optimizer and how far it is.

    Args:
      precision: of the training that this one goes on with; None for what the config says.
    """

    def __init__(
        self, config: Config, prepared: Prepared, data: Data, world: World | None = None, precision: str | None = None
    ) -> None:
        settings = config.finetune
        own_device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.config, self.data, self.world = config, data, world or World(device=own_device)
        self.device = self.world.device
        own = precision or resolve(settings.precision, device=self.device.type)
        self.precision = str(self.world.agreed(own))
        expect_room(
            config,
            step_shape(config, data.train, data.catalog, self.world.size),
            precision=self.precision,
            device=self.device,
            per_node=1 if self.device.type == "cuda" else self.world.per_node,
        )
        per_epoch = -(-len(data.train) // settings.examples_per_step)
        self.n_steps = min(settings.max_steps or sys.maxsize, settings.epochs * per_epoch)
        expect_fit(config, data.segmenter, n_steps=self.n_steps)
        found = factor_stage.fitted(config, prepared, data, self.device) if self.world.writes else None
        found = self.world.agreed(found)
        self.factors, self.told_of_factors = found if found is not None else (None, {})
        torch.manual_seed(settings.seed)
        self.model = build_model(
            config, data.segmenter, n_factors=0 if self.factors is None else self.factors.train.width
        )
        self.start = self._offsets(prepared, [c.TRAIN]) if config.model.bias_terms else None
        if self.start is not None and config.model.head == "linear":  # what the offsets are relative to
            self.model.rating.offset.data.fill_(self.start.level)
        self.bias = training.BiasTerms(*(None, None) if self.start is None else (self.start.user, self.start.item))
        self.shown = self._shown(prepared)
        items, texts = (None, None) if self.shown is None else (self.shown.items, self.shown.texts)
        self.terms = Terms(items, hidden_share=settings.factors.hidden_share, texts=texts).to(self.device)
        self.adapter: Adapter | None = None
        if settings.adapter.method != "none":
            path, backbone = config.model.path, self.model.backbone
            self.adapter = Adapter(backbone, settings.adapter, folder=path, n_steps=self.n_steps)
            if self.precision == "bf16":
                self.adapter.round_frozen()
        self.model.to(self.device)
        self.bias.to(self.device)
        self.optimizer = training.optimizer(self.model, self.bias, settings)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.teacher: Teacher | None = None
        if settings.teacher is not None:
            fields = prepared.fields("items"), prepared.fields("users")
            whole = data.catalog, data.train, data.user_ids, fields
            tastes_of = partial(tastes_of_train, prepared=prepared, data=data)
            self.teacher = Teacher(settings.teacher, *whole, self.device, tastes_of)
        self.rate_factor = training.rate_factor(settings, self.n_steps)
        self.validate_every = settings.validate_every or min(per_epoch, VALIDATE_EVERY)
        self.step = 0
        self.stopping = Stopping(settings.early_stopping.metric)
        self.validation_of_best: Validation | None = None
        self.history: list[dict[str, float]] = []
        self.losses: list[float] = []  # of the steps since the last validation

    def _shown(self, prepared: Prepared) -> TrainingFactors | None:
        """The factors of the train split; the items' segments hold them from now on where the model has such tokens."""
        if self.factors is None:
            return None
        data = self.data
        shown = TrainingFactors.of(self.factors.train, prepared, data, self.model, self.bias)
        if data.segmenter.has_factors:
            tokens = replace(data.catalog.tokens, factors=shown.items.vectors)
            self.data = replace(data, catalog=replace(data.catalog, tokens=tokens))
        return shown

    def _offsets(self, prepared: Prepared, splits: list[str]) -> Offsets:
        found = dataset.sequences(prepared, self.data.catalog, self.data.user_ids, splits=splits).offsets
        log.info("bias terms: of %s: variance of users %.3f, of items %.3f", " and ".join(splits), *found.variances)
        return found

    def served_factors(self, prepared: Prepared, latest: training.BiasTerms) -> FactorsOfSplits | None:
        """The factors, with what the texts of new items say of them by the word embeddings as they are now."""
        known = prepared, self.data.catalog, self.model, (self.bias, latest)
        return None if self.factors is None else with_texts_of(self.factors, *known)

    def latest_bias(self, prepared: Prepared) -> training.BiasTerms:
        """The learned offsets, moved by what the valid split adds to where they started.

        Once training has stopped and calibration is fitted, the valid split has nothing left to hold out: an item
        that many disliked there should not be listed as if nobody had said so.
        """
        if self.start is None:
            return training.BiasTerms(None, None)
        now, after = self.bias, self._offsets(prepared, [c.TRAIN, c.VALID])
        user, item = (part.detach().cpu().numpy() for part in (now.user, now.item))
        return training.BiasTerms(user + after.user - self.start.user, item + after.item - self.start.item)

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model, "bias": self.bias}

    def steps(self) -> Iterator[Step]:
        """The steps from where the training is to its end."""
        settings, data, number = self.config.finetune, self.data, 0
        lengths = np.array([len(prefix) for prefix in data.train.prefixes])
        for epoch in range(settings.epochs):
            for rows in epoch_order(lengths, per_step=settings.examples_per_step, seed=settings.seed, epoch=epoch):
                if number == self.n_steps:
                    return
                if self.step <= number:
                    yield make_step(
                        rows,
                        data.train,
                        data.segmenter,
                        data.negatives,
                        n_negatives=settings.n_negatives,
                        seed=settings.seed,
                        number=number,
                        augment=settings.augment,
                        tastes=None if self.shown is None else self.shown.train,
                    )
                number += 1

    def learn(self, step: Step) -> float:
        """One optimizer step; returns its loss. Every draw depends on seed, step number and rank alone."""
        settings = self.config.finetune
        torch.manual_seed((settings.seed * 1_000_003 + self.step) * self.world.size + self.world.rank)
        self.model.train()
        self.bias.train()
        self.terms.train()
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.rate_factor(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        own = step.share(self.world.rank, self.world.size)
        total = 0.0
        for part in own.split(settings.accumulate_steps) if own else ():
            total += self._backward(part, step)
        everything = [*self.model.parameters(), *self.bias.parameters()]
        self.world.sum_gradients(everything)
        if self.adapter and (penalty := self.adapter.penalty()) is not None:
            penalty.backward()  # type: ignore[no-untyped-call]
        norm = float(nn.utils.clip_grad_norm_(everything, settings.clip_norm))
        self.losses.append(self.world.sum(total))
        self.step += 1
        expect_finite("finetune", self.losses[-1], norm, step=f"{self.step} of {self.n_steps}", config=settings)
        self.optimizer.step()
        if self.adapter:
            self.adapter.after_step(self.step)
        return self.losses[-1]

    def _backward(self, part: Step, whole: Step) -> float:
        """Adds the gradients of a part of a step; returns its share of the loss."""
        settings, device = self.config.finetune, self.device.type
        catalog, log_share = self.data.catalog.tokens, self.data.negatives.log_share
        told = self.teacher.probabilities(part) if self.teacher else None  # while nothing is kept for the gradients
        with training.attention(device):  # of the backward pass too: there checkpointed layers run again
            with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16"):
                rating, listing = training.step_logits(
                    self.model, self.bias, part, catalog, bias_dropout=settings.bias_dropout, terms=self.terms
                )
            rating = rating.float()
            value = training.loss(rating, listing, part, whole=whole, log_share=log_share, config=settings)
            if told is not None:
                soft = soft_loss(rating, told, int((whole.items >= 0).sum()))
                value = (1.0 - settings.teacher_weight) * value + settings.teacher_weight * soft
            value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    def served(self) -> SegmentedModel:
        """The model as it is saved: without an adapter itself, with one a copy that has it merged."""
        if self.adapter is None:
            return self.model
        merged = copy.deepcopy(self.model)
        merge(merged.backbone)
        return merged

    def validate(self) -> Validation:
        data = self.data
        self.bias.eval()
        return validate(
            self.served(),
            self.bias,
            data.valid,
            data.catalog,
            seen=data.seen,
            precision=self.precision,
            factors=None if self.shown is None else (self.shown.items, self.shown.valid),
        )

    def is_best(self, metrics: Mapping[str, float]) -> bool:
        """Notes a validation; true when its metric is the best so far."""
        loss = {"loss": float(np.mean(self.losses))} if self.losses else {}
        self.history.append({"step": self.step, **metrics, **loss})
        self.losses.clear()
        return self.stopping.is_best(metrics)

    def save(self, folder: Path, key: str) -> None:
        stopping = {"best": self.stopping.best, "n_worse": self.stopping.n_worse}
        told = {"step": self.step, "history": self.history, "losses": self.losses, "precision": self.precision}
        extra = self.adapter.state() if self.adapter else {}
        resume.save_state(folder, self.modules, self.optimizer, {"key": key, **told, **stopping}, extra)

    def resume(self, folder: Path, key: str) -> None:
        """Goes back to a resume point of the same training, when there is one."""
        if resume.progress_of(folder).get("key") == key:
            progress, extra = resume.load_state(folder, self.modules, self.optimizer)
            if self.adapter:
                self.adapter.load_state(extra)
            self.step, self.history, self.losses = progress["step"], progress["history"], progress.get("losses", [])
            self.stopping.best, self.stopping.n_worse = progress["best"], progress["n_worse"]
            log.info("finetune: resumed at step %d of %d", self.step, self.n_steps)
