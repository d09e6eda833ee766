"""Domain pre-training: the model reads the prompts of items and users before it is asked anything about them.

Encoders guess masked tokens (Devlin et al. 2019, section 3.1: of the chosen tokens 80 % become the mask, 10 % another
token, 10 % stay), decoders the next token. The prompts are those of fine-tuning, from the train split alone.
"""

from __future__ import annotations

import logging
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as hf_logging

from flmrec_spark import columns as c
from flmrec_spark.config import Config, PretrainConfig
from flmrec_spark.errors import CheckpointError, ConfigError, InputError
from flmrec_spark.lm import dataset, folders, manifest
from flmrec_spark.lm.batches import epoch_order
from flmrec_spark.lm.loading import check_template, load_segmenter
from flmrec_spark.lm.memory import refusals_told
from flmrec_spark.lm.prepared import Prepared, expect_histories, read_tables
from flmrec_spark.lm.segments import Segmenter
from flmrec_spark.lm.stopping import expect_finite
from flmrec_spark.lm.token_block import TokenBlock
from flmrec_spark.prompts import load_template

log = logging.getLogger("flmrec")

MARK = "pretraining.json"  # beside the stock files: what the model has read
_NOT_ASKED = -100  # label that the cross-entropy leaves out


def pretrain(config: Config, *, force: bool = False) -> dict[str, object]:
    """Trains on the texts and writes a stock model folder with its tokenizer, whole or not at all.

    Returns what pretraining.json holds, with `status`. The same command on the same inputs does nothing.

    Raises:
      ConfigError: the model is neither an encoder nor a decoder, the output is the model's own folder, or prompts are
        to show longer histories than the tables have.
      CheckpointError: the pretrained folder is missing or damaged, or the output is something else's folder.
      InputError: the tables are missing or empty.
      ConflictError: another process makes the same folder.
      EnvironmentFault: there is no room for it in memory, or on the disk.
    """
    target, source = Path(config.pretrain.output), Path(config.model.path)
    if target.resolve() == source.resolve():
        raise ConfigError(f"pretrain.output: got {target}, which is model.path, expected another folder")
    folders.expect_room(target, mark=MARK)
    told = (
        f"pretrain: out of memory with pretrain.texts_per_step = {config.pretrain.texts_per_step}, expected room; "
        "fewer take less"
    )
    with refusals_told(told), folders.held(target):
        return _pretrain_alone(config, target, source, force=force)


def _pretrain_alone(config: Config, target: Path, source: Path, *, force: bool) -> dict[str, object]:
    prepared = read_tables(config.tables.root)
    expect_histories(prepared, config.prompts.history_length)
    versions = {name: f"{prepared.table_ids[name]}:{version}" for name, version in prepared.versions.items()}
    weights = manifest.pretrained_files(source)
    template = load_template(config.prompts.template)
    told = [config.digest("prompts", "pretrain"), str(source), template.to_yaml(), str(versions), str(weights)]
    key = manifest.text_digest("|".join(told))
    if not force and _read(target).get("fingerprint") == key:
        return {**_read(target), "status": "already done"}
    segmenter = load_segmenter(config, has_factors=False)
    check_template(segmenter, prepared)
    texts = read_texts(prepared, segmenter)
    torch.manual_seed(config.pretrain.seed)
    model, objective, is_new = load_language_model(source)
    losses = train(model, texts, segmenter.tokenizer, config.pretrain, objective=objective)
    summary: dict[str, object] = {
        "fingerprint": key,
        "objective": objective,
        "head": "new" if is_new else "pretrained",
        "texts": len(texts),
        "steps": len(losses),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }
    _write(target, model, segmenter.tokenizer, summary)
    return {**summary, "status": "done"}


def read_texts(prepared: Prepared, segmenter: Segmenter) -> TokenBlock:
    """Every distinct item prompt, and every distinct user prompt of the train split, as tokens."""
    items = dataset.catalog(prepared.tables["items"], segmenter)
    users = sorted(prepared.tables["users"][c.USER_ID].to_pylist())
    # The prefixes alone are read, so a row of very many targets may as well be several.
    examples = dataset.examples(prepared, c.TRAIN, items, segmenter, width=64, user_ids=users)
    known = [items.tokens.ids[row, : items.tokens.lengths[row]].tolist() for row in np.flatnonzero(items.is_known)]
    return segmenter.block(list(dict.fromkeys(map(tuple, [*known, *examples.prefixes]))))


def load_language_model(folder: Path) -> tuple[Any, str, bool]:
    """(model with its language head, masked or causal, whether the head is new).

    Raises:
      CheckpointError: the folder is missing, damaged or lacks weights besides the head's.
      ConfigError: the model is neither an encoder nor a decoder.
    """
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # a head that is missing is told below
    try:
        kind = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).model_type
        if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
            loader: Any = AutoModelForMaskedLM
        elif kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            loader = AutoModelForCausalLM
        else:
            raise ConfigError(f"model.path: got type {kind}, expected an encoder or a decoder for pre-training")
        model, report = loader.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, KeyError, RuntimeError, SafetensorError) as fault:
        raise CheckpointError(f"{folder}: not loadable: {manifest.one_line(fault)}") from fault
    finally:
        hf_logging.set_verbosity(level)
    objective = "masked" if loader is AutoModelForMaskedLM else "causal"
    missing = sorted(report["missing_keys"])
    prefix = f"{model.base_model_prefix}."
    if lost := [name for name in missing if name.startswith(prefix)]:
        raise CheckpointError(f"{folder}: lacks {len(lost)} tensors, such as {lost[0]}")
    if missing:
        log.warning("pretrain: %s has no language head: a new one is trained from random numbers", folder)
    return model, objective, bool(missing)


def train(model: Any, texts: TokenBlock, tokenizer: Any, settings: PretrainConfig, *, objective: str) -> list[float]:
    """Trains in place; returns the mean loss per asked token of each step. Every draw depends on seed and step."""
    if objective == "masked" and tokenizer.mask_token_id is None:
        raise CheckpointError("tokenizer: got no mask token, expected one for masked-language training")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    per_epoch = -(-len(texts) // settings.texts_per_step)
    n_steps = min(settings.max_steps or sys.maxsize, settings.epochs * per_epoch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    n_warm = math.ceil(settings.warmup_share * n_steps)
    losses: list[float] = []
    lengths = texts.lengths.astype(np.int64)
    epochs = (
        epoch_order(lengths, per_step=settings.texts_per_step, seed=settings.seed, epoch=epoch)
        for epoch in range(settings.epochs)
    )
    head, n_words = model.get_output_embeddings(), min(len(tokenizer), int(model.get_input_embeddings().num_embeddings))
    steps = list(islice((rows for epoch in epochs for rows in epoch), n_steps))
    for number, rows in enumerate(tqdm(steps, desc="pretrain", unit="step", disable=not sys.stderr.isatty())):
        torch.manual_seed(settings.seed * 1_000_003 + number)
        decay = 1.0 - (number - n_warm) / max(1, n_steps - n_warm)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * ((number + 1) / n_warm if number < n_warm else decay)
        block = texts.take(rows)
        ids, asked = _question(block, tokenizer, settings, objective=objective, number=number, n_words=n_words)
        is_asked = asked != _NOT_ASKED
        if not is_asked.any():
            continue
        seen = torch.arange(ids.shape[1])[None] < torch.from_numpy(block.lengths)[:, None]
        with _at(head, is_asked.to(device)):
            logits = model(ids.to(device), attention_mask=seen.long().to(device)).logits
        value = nn.functional.cross_entropy(logits.float(), asked[is_asked].to(device))
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm))
        losses.append(float(value.detach()))
        expect_finite("pretrain", losses[-1], norm, step=f"{number + 1} of {len(steps)}", config=settings)
        optimizer.step()
    if not losses:
        raise InputError(f"pretrain: got no token to guess in {len(texts):,} texts, expected some the tokenizer knows")
    log.info("pretrain: %d steps, loss %.4f -> %.4f", len(losses), losses[0], losses[-1])
    return losses


@contextmanager
def _at(head: nn.Module, places: Tensor) -> Iterator[None]:
    """The language head answers at these places (B, T) alone, (n, V): those of every token would fill the memory."""
    hook = head.register_forward_pre_hook(lambda _, given: (given[0][places], *given[1:]))
    try:
        yield
    finally:
        hook.remove()


def _question(
    block: TokenBlock, tokenizer: Any, settings: PretrainConfig, *, objective: str, number: int, n_words: int
) -> tuple[Tensor, Tensor]:
    """(inputs, labels), int64 (B, T) each; a label is asked where it is not -100."""
    ids = block.ids.astype(np.int64)
    is_text = np.arange(ids.shape[1]) < block.lengths[:, None]
    if objective == "causal":
        following = np.full(ids.shape, _NOT_ASKED)
        following[:, :-1] = np.where(is_text[:, 1:], ids[:, 1:], _NOT_ASKED)
        return torch.from_numpy(ids), torch.from_numpy(following)
    random = np.random.default_rng([settings.seed, 5, number])
    is_text &= ~np.isin(ids, tokenizer.all_special_ids)
    chosen = is_text & (random.random(ids.shape) < settings.mask_share)
    if is_text.any() and not chosen.any():  # a step that asks nothing has no loss
        chosen.flat[random.choice(np.flatnonzero(is_text))] = True
    way, other = random.random(ids.shape), random.integers(0, n_words, ids.shape)
    shown = np.where(way < 0.8, tokenizer.mask_token_id, np.where(way < 0.9, other, ids))
    return torch.from_numpy(np.where(chosen, shown, ids)), torch.from_numpy(np.where(chosen, ids, _NOT_ASKED))


def _write(target: Path, model: Any, tokenizer: Any, summary: Mapping[str, object]) -> None:
    draft = folders.beside(target, ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    with folders.written(target):
        model.cpu().save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        manifest.write_json(draft / MARK, summary)
        folders.replace(target, draft)


def _read(target: Path) -> dict[str, Any]:
    file = folders.present(target) / MARK
    return manifest.read_json(file) if file.is_file() else {}
