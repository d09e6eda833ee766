"""Fine-tuning from the prepared tables to a checkpoint: data, model, loop, calibration, in this order."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from safetensors.torch import load_file
from tqdm import tqdm

from flmrec_spark.config import Config
from flmrec_spark.errors import ConflictError
from flmrec_spark.lm import checkpoint, distributed, folders, manifest, resume
from flmrec_spark.lm.distributed import World
from flmrec_spark.lm.loading import load_data
from flmrec_spark.lm.memory import refusals_told
from flmrec_spark.lm.prepared import TABLES, Prepared, read_tables
from flmrec_spark.lm.trainer import Trainer
from flmrec_spark.prompts import load_template

log = logging.getLogger("flmrec")


def fingerprint(config: Config, prepared: Prepared) -> str:
    """What a training depends on: its settings, the template, the pretrained files and the versions of the tables."""
    files = manifest.pretrained_files(Path(config.model.path))
    versions = [f"{name}={prepared.table_ids[name]}:{prepared.versions[name]}" for name in TABLES]
    template = load_template(config.prompts.template).to_yaml()
    settings = [config.digest("prompts", "model", "finetune"), config.digest("prepare"), f"format={manifest.FORMAT}"]
    if config.finetune.teacher is not None:
        settings.append(manifest.digest_of(folders.present(Path(config.finetune.teacher))))
    return manifest.text_digest(
        "|".join([*settings, template, *(f"{name}={digest}" for name, digest in files), *versions])
    )


def finetune(config: Config, *, force: bool = False, stop_after: int | None = None) -> dict[str, object]:
    """Trains and writes the checkpoint; returns what metrics.json holds, with `digest`, `status` and `rank`.

    A finished training with the same fingerprint is left as it is, an interrupted one goes on where it was last
    saved and ends with the same weights. `stop_after` steps of this call it stops without a checkpoint. Under
    torchrun every process calls this, and rank 0 writes.

    Raises:
      ConflictError: another process trains this checkpoint.
      EnvironmentFault: there is no room in memory, or on the disk of the checkpoint.
    """
    settings = config.finetune
    told = (
        f"finetune: out of memory with finetune.examples_per_step = {settings.examples_per_step} in "
        f"{settings.accumulate_steps} parts, expected room; more finetune.accumulate_steps take less"
    )
    with distributed.joined() as world, refusals_told(told):
        return {**_finetune(config, world, force=force, stop_after=stop_after), "rank": world.rank}


@contextmanager
def _held(target: Path, world: World) -> Iterator[None]:
    """One training at a time: rank 0 has the lock, and all processes hear of it."""
    with ExitStack() as kept:
        fault: ConflictError | None = None
        if world.writes:
            try:
                kept.enter_context(folders.held(target))
            except ConflictError as failure:
                fault = failure
        told = world.agreed(None if fault is None else str(fault))
        if told is not None:
            raise ConflictError(told)
        yield


def _finetune(config: Config, world: World, *, force: bool, stop_after: int | None) -> dict[str, object]:
    target = Path(config.checkpoint)
    folders.expect_room(target, mark=manifest.NAME)
    with _held(target, world):
        return _finetune_alone(config, world, target, force=force, stop_after=stop_after)


def _finetune_alone(
    config: Config, world: World, target: Path, *, force: bool, stop_after: int | None
) -> dict[str, object]:
    prepared = read_tables(config.tables.root)
    key = fingerprint(config, prepared)
    found = {} if force else checkpoint.read_metrics(config.checkpoint)
    if world.agreed(found.get("fingerprint") == key):
        if world.writes:  # what a kill behind the checkpoint's rename left
            folders.clear_previous(target)
            if resume.progress_of(left := folders.beside(target, ".training")).get("key") == key:
                shutil.rmtree(left, ignore_errors=True)
        return {**found, "digest": checkpoint.load(config.checkpoint).digest, "status": "already done"}
    started = time.perf_counter()
    folder = folders.beside(target, ".training")
    earlier = resume.progress_of(folder)
    goes_on = not force and earlier.get("key") == key
    # `auto` might measure otherwise today.
    precision = str(earlier["precision"]) if goes_on else None
    trainer = Trainer(config, prepared, load_data(config, prepared), world, precision=precision)
    if world.writes and not goes_on:  # nothing of another training may be taken for this
        shutil.rmtree(folder, ignore_errors=True)
    world.agreed(None)  # the others look only now
    trainer.resume(folder, key)
    if not _loop(trainer, folder, key, stop_after):
        return {"status": "stopped", "step": trainer.step}
    done: dict[str, object] = {}
    if world.writes:
        done = _write(trainer, prepared, folder, key)
        shutil.rmtree(folder, ignore_errors=True)
    world.agreed(None)
    return {**done, "status": "done", "seconds": round(time.perf_counter() - started, 1)}


def _write(trainer: Trainer, prepared: Prepared, folder: Path, key: str) -> dict[str, object]:
    """Calibrates the best weights and writes the checkpoint; returns its metrics and its digest."""
    resume.put_back(trainer.modules, load_file(folder / resume.BEST))
    last = trainer.validation_of_best or trainer.validate()  # none: an earlier process saw it
    metrics = {"fingerprint": key, "validation": dict(last.metrics), **_told(trainer, prepared)}
    latest, ids = trainer.latest_bias(prepared), (trainer.data.user_ids, trainer.data.catalog.item_ids)
    blend, new_users = last.blends()
    digest = checkpoint.save(
        trainer.config.checkpoint,
        model=trainer.served().cpu(),
        segmenter=trainer.data.segmenter,
        biases=latest.named(*ids),
        train_biases=trainer.bias.named(*ids),
        blend=blend,
        new_users=new_users,
        factors=trainer.served_factors(prepared, latest),
        metrics=metrics,
        config=trainer.config.as_dict(),
        write_adapter=trainer.adapter.save if trainer.adapter else None,
    )
    return {**metrics, "digest": digest}


def _told(trainer: Trainer, prepared: Prepared) -> dict[str, object]:
    """What metrics.json says of a training besides its result."""
    data = trainer.data
    return {
        "history": trainer.history,
        "factors": trainer.told_of_factors,
        "steps": trainer.step,
        "precision": trainer.precision,
        "tables": dict(prepared.versions),
        "counts": {
            "items": len(data.catalog.item_ids),
            "items_refused": int((~data.catalog.is_known).sum()),
            "train_examples": len(data.train),
            "examples_refused": data.train.n_refused,
            "history_cut": data.train.n_cut,
        },
    }


def _loop(trainer: Trainer, folder: Path, key: str, stop_after: int | None) -> bool:
    """Runs to the end or to early stopping; false when stop_after came first."""
    settings = trainer.config.finetune
    first, started, n_examples = trainer.step, time.perf_counter(), 0
    quiet, world = not sys.stderr.isatty(), trainer.world
    bar = tqdm(
        total=trainer.n_steps,
        initial=first,
        unit="step",
        mininterval=30 if quiet else 0.5,
        desc="finetune",
        disable=not world.writes,
    )
    if not trainer.n_steps:  # epochs: 0
        _note(trainer, folder)
    with bar:
        for step in trainer.steps():
            if trainer.stopping.n_worse >= settings.early_stopping.patience:
                break
            value = trainer.learn(step)
            n_examples += int(step.is_observed.sum())
            rate = n_examples / (time.perf_counter() - started)
            bar.set_postfix({"loss": f"{value:.4f}", "examples/s": f"{rate:.0f}"}, refresh=False)
            bar.update()
            at_end = trainer.step == trainer.n_steps
            validated = trainer.step % trainer.validate_every == 0 or at_end
            if validated:
                _note(trainer, folder)
            stops = stop_after is not None and trainer.step - first >= stop_after and not at_end
            is_due = settings.save_every is not None and trainer.step % settings.save_every == 0
            if world.writes and (validated or stops or is_due):
                trainer.save(folder, key)
            if stops:
                return False
    return True


def _note(trainer: Trainer, folder: Path) -> None:
    """Validates in rank 0, tells all of it, and keeps the weights when they are the best so far."""
    own = trainer.validate() if trainer.world.writes else None
    found: Mapping[str, float] = trainer.world.agreed(None if own is None else own.metrics)
    log.info("finetune: step %d: %s", trainer.step, ", ".join(f"{k} {v:.4f}" for k, v in found.items()))
    if trainer.is_best(found) and trainer.world.writes:
        trainer.validation_of_best = own
        resume.save_best(folder, trainer.modules)
