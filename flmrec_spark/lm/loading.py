"""What a training reads: the prepared tables, rendered and tokenised."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from flmrec_spark import columns as c
from flmrec_spark.config import Config
from flmrec_spark.errors import CheckpointError, InputError
from flmrec_spark.lm import checkpoint, dataset
from flmrec_spark.lm.batches import Negatives
from flmrec_spark.lm.dataset import Catalog, Examples, Index
from flmrec_spark.lm.families.loading import layout_of, vocabulary_of
from flmrec_spark.lm.prepared import Prepared, drawn_users, expect_histories
from flmrec_spark.lm.segments import Segmenter
from flmrec_spark.prompts import load_template

log = logging.getLogger("flmrec")


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
    profiles: list[list[int]]  # (U,) tokens that stand before the history of each user, where factors read them


def load_data(config: Config, prepared: Prepared) -> Data:
    """Renders and tokenises the prepared tables.

    Raises:
      ConfigError: the template names an attribute that the tables lack, or prompts are to show longer histories than
        the tables have.
      InputError: no train example, or no valid one to stop and calibrate by.
      CheckpointError: the pretrained folder has no tokenizer, or one that gives tokens which the model does not know.
    """
    expect_histories(prepared, config.prompts.history_length)
    segmenter = load_segmenter(config)
    check_template(segmenter, prepared)
    catalog = dataset.catalog(prepared.tables["items"], segmenter)
    n_refused = int((~catalog.is_known).sum())
    too_long = f"{n_refused:,} of {len(catalog.item_ids):,} items are longer than prompts.item_tokens"
    if n_refused:
        log.warning("finetune: %s: nothing is learned of them, and no list will hold them", too_long)
    user_ids = sorted(prepared.tables["users"][c.USER_ID].to_pylist())
    width = config.prepare.targets_per_example
    keeps_sources = config.finetune.augment.is_on or config.finetune.teacher is not None
    train = dataset.examples(
        prepared, c.TRAIN, catalog, segmenter, width=width, user_ids=user_ids, keeps_sources=keeps_sources
    )
    if train.n_refused:
        log.warning(
            "finetune: %s of %s train examples have a profile that is longer than prompts.user_tokens and are left out",
            f"{train.n_refused:,}",
            f"{train.n_refused + len(train):,}",
        )
    drawn = drawn_users(prepared, c.VALID, n=config.finetune.valid_users, seed=[config.finetune.seed, 3])
    valid = dataset.examples(prepared, c.VALID, catalog, segmenter, width=None, user_ids=user_ids, only=drawn)
    for split, rows in ((c.TRAIN, train), (c.VALID, valid)):
        if not len(rows):
            cause = f"; {too_long}" if n_refused else ""
            if rows.n_refused:
                cause += f"; {rows.n_refused:,} have a profile that is longer than prompts.user_tokens"
            raise InputError(
                f"table examples: got no usable row of split {split}, expected some{cause}; see prepare.split"
            )
    largest = max(int(catalog.tokens.ids.max()), max(map(max, [*train.prefixes, *valid.prefixes])))
    if largest >= (n_words := vocabulary_of(config.model.path)):
        raise CheckpointError(
            f"{config.model.path}: the tokenizer gives token {largest}, but the model has {n_words} of them, "
            "expected one that knows all tokens of its tokenizer"
        )
    seen = dataset.seen(prepared, catalog, user_ids, splits=[c.TRAIN])
    counts, _ = dataset.counts(prepared, c.ITEM_ID, catalog.item_ids, splits=[c.TRAIN])
    settings = config.finetune
    negatives = Negatives.of(
        counts, power=settings.negative_power, known=seen, drawable=catalog.is_known, n=settings.n_negatives
    )
    factors = config.model.collaborative
    profiles = dataset.profiles(prepared, segmenter, user_ids, are_read=factors.dimension > 0 and factors.profile > 0)
    return Data(segmenter, catalog, user_ids, train, valid, negatives, seen, profiles)


def check_template(segmenter: Segmenter, prepared: Prepared) -> None:
    """Raises ConfigError where a piece names a field that the tables lack."""
    items = [c.TITLE, c.ITEM_ID, *prepared.fields("items")]
    segmenter.template.check(item_fields=items, user_fields=prepared.fields("users"))


def load_segmenter(config: Config, *, has_factors: bool = True) -> Segmenter:
    """The template and the pretrained tokenizer, with the marks of the pretrained model's family.

    Args:
      has_factors: with collaborative tokens, if the config wants them; without, segments are text alone.

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
        has_factors=has_factors and config.model.collaborative.dimension > 0 and config.model.collaborative.tokens,
    )
