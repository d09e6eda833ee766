"""The stage before fine-tuning: collaborative factors of the train split, and what the valid split adds to them.

Factors learn from train alone until the valid split says stop. From there they go on, as long again, with train and
valid together: a nightly list should know yesterday's rows, and the vectors keep the directions that the language model
learns to read. The first are what the language model is trained and calibrated with, the second are what is served.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from flmrec_spark import columns as c
from flmrec_spark.config import Config
from flmrec_spark.lm import dataset, factor_training, neighbour_choice, neighbours, profiles
from flmrec_spark.lm.blending import FEWEST_USERS
from flmrec_spark.lm.collaborative import (
    LISTING,
    RATING,
    Bools,
    Collaborative,
    Factors,
    FactorsOfSplits,
    Places,
)
from flmrec_spark.lm.dataset import Catalog
from flmrec_spark.lm.factor_validation import Question
from flmrec_spark.lm.families.loading import load_backbone
from flmrec_spark.lm.grades import Grades
from flmrec_spark.lm.loading import Data
from flmrec_spark.lm.mean_embeddings import features
from flmrec_spark.lm.neighbours import Spectrum
from flmrec_spark.lm.prepared import Prepared
from flmrec_spark.lm.sequences import Sequences

log = logging.getLogger("flmrec")


@dataclass(frozen=True)
class Known:
    """The rows of some splits, with the items that stand in them numbered anew."""

    sequences: Sequences
    items: Places  # (n,) places in the catalogue, ascending
    grades: Grades | None

    @classmethod
    def of(cls, prepared: Prepared, data: Data, splits: list[str], *, is_graded: bool) -> Known:
        grades = dataset.grades(prepared, splits=splits) if is_graded else None
        every = dataset.sequences(prepared, data.catalog, data.user_ids, splits=splits, grades=grades)
        items = np.unique(every.items)
        parts = (every.users, np.searchsorted(items, every.items), every.liked, every.moments, every.labels)
        return cls(Sequences.of(*parts, n_users=every.n_users, n_items=len(items)), items, grades)

    def places(self, items: Places) -> Places:
        """Places among the known items of places in the catalogue, -1 for others."""
        found = np.searchsorted(self.items, items).clip(max=len(self.items) - 1)
        return np.where(self.items[found] == items, found, -1)

    def collaborative(self, factors: dict[str, Factors], catalog: Catalog, n_history: int) -> Collaborative:
        ids = pa.array([catalog.item_ids[place] for place in self.items], pa.string())
        return Collaborative(ids, dict(sorted(factors.items())), n_history, grades=self.grades)


def fitted(
    config: Config, prepared: Prepared, data: Data, device: torch.device
) -> tuple[FactorsOfSplits, dict[str, object]] | None:
    """Both sets of factors and what to tell of them; None when model.collaborative.dimension is 0."""
    settings = config.model.collaborative
    if not settings.dimension:
        return None
    is_graded = config.finetune.factors.graded_labels
    early, late = (Known.of(prepared, data, splits, is_graded=is_graded) for splits in ([c.TRAIN], [c.TRAIN, c.VALID]))
    questions = _questions(data, early, settings.history_length)
    first: dict[str, Factors] = {}
    second: dict[str, Factors] = {}
    told: dict[str, object] = {}
    seed = config.finetune.seed
    for objective in (LISTING, RATING):
        if objective == RATING and len(np.unique(early.sequences.liked)) < 2:
            log.info("factors: every row of the train split has one label: no rating factors")
            continue

        def fit(known: Known, asked: list[Question], **more: Any) -> tuple[Factors, dict[str, float]]:
            return factor_training.fit(
                known.sequences,
                asked,
                objective=objective,  # noqa: B023  called before the next one
                is_drawable=data.catalog.is_known[known.items],
                model=settings,
                training=config.finetune.factors,
                seed=seed,
                device=device,
                has_bias_terms=config.model.bias_terms,
                **more,
            )

        first[objective], found = fit(early, questions)
        begun = first[objective], early.places(late.items)
        second[objective], _ = fit(late, [], start=begun, epochs=int(found["epoch"]))
        if settings.neighbours:
            pair = (first[objective], early), (second[objective], late)
            is_drawable = data.catalog.is_known[early.items] if objective == LISTING else None
            near = _with_neighbours(
                *pair, settings.neighbours, questions, is_drawable, seed, has_bias_terms=config.model.bias_terms
            )
            first[objective], second[objective], more = near
            found |= more
        told[objective] = found
    first[LISTING], second[LISTING] = _popular(first[LISTING], early), _popular(second[LISTING], late)
    if settings.profile:
        pair = (first[LISTING], early), (second[LISTING], late)
        first[LISTING], second[LISTING], more = _with_profile(*pair, config, data)
        told[LISTING] |= more  # type: ignore[operator]
    n_history = settings.history_length
    train, whole = (
        known.collaborative(factors, data.catalog, n_history) for known, factors in ((early, first), (late, second))
    )
    return FactorsOfSplits(train, whole), told


def _with_neighbours(
    first: tuple[Factors, Known],
    second: tuple[Factors, Known],
    dimension: int,
    questions: list[Question],
    allowed: Bools | None,
    seed: int,
    has_bias_terms: bool,
) -> tuple[Factors, Factors, dict[str, float]]:
    """Both editions with what the neighbours say, if that helps on the valid split, and what to tell of it.

    `allowed` are the items that a list may hold, for factors of lists; None for those of ratings.
    """
    (factors, early), (later, late) = first, second
    objective, spectrum_of = (RATING, Spectrum.of_labels) if allowed is None else (LISTING, Spectrum.of_met)
    spectrum = spectrum_of(early.sequences, dimension, seed=seed)
    if spectrum is None:
        return factors, later, {}
    if allowed is None:
        own = early.sequences.offsets
        bias, users = np.append(own.item, np.float32(0)) + factors.offset, own.user
        if not has_bias_terms:
            bias, users = factors.offset, np.zeros_like(own.user)
        choice = neighbour_choice.choose_for_ratings(spectrum, factors, bias, users, questions)
    else:
        choice = neighbour_choice.choose_for_lists(spectrum, factors, questions, allowed=allowed)
    if choice is None:
        log.info("factors: %s: neighbours: no better on the valid split: left out", objective)
        return factors, later, {}
    losses = choice.log_loss, choice.log_loss_without
    log.info("factors: %s: neighbours: log-loss %.4f, without %.4f", objective, *losses)
    whole = spectrum_of(late.sequences, dimension, seed=seed)
    assert whole is not None
    near, newer = (one.neighbours(choice.penalty, choice.weight) for one in (spectrum, whole))
    # What few rows taught may be far from the scale of a logit, and so may be what fits beside it.
    factors, later = (one.scaled(choice.of_factors) for one in (factors, later))
    newer = neighbours.turned(newer, near, early.places(late.items))
    told = {"neighbours_log_loss": choice.log_loss, "log_loss_without": choice.log_loss_without}
    return replace(factors, near=near), replace(later, near=newer), told


def _popular(factors: Factors, known: Known) -> Factors:
    """With what takes the place of the offsets for users without history, of the same mean where likes are."""
    likes = known.sequences.item_log_likes()
    less = likes - factors.offset[:-1]
    popular = less - np.average(less, weights=np.expm1(likes) + 1e-9)
    return replace(factors, popular=np.append(popular, 0.0).astype(np.float32))


def _with_profile(
    first: tuple[Factors, Known], second: tuple[Factors, Known], config: Config, data: Data
) -> tuple[Factors, Factors, dict[str, float]]:
    """Both editions with what profiles say of lists, if that helps users who are left out, and what to tell of it."""
    (factors, early), (later, late) = first, second
    if all(one == data.profiles[0] for one in data.profiles):
        return factors, later, {}
    words = data.segmenter.block(data.profiles)
    embeddings = load_backbone(config.model.path).get_input_embeddings().weight.detach().numpy()  # type: ignore[operator]
    table = profiles.token_table(embeddings, words, config.model.collaborative.profile)
    if table is None:
        return factors, later, {}
    x, allowed = features(table, words).astype(np.float64), data.catalog.is_known[early.items]
    choice = profiles.choose(x, profiles.likes_of(early.sequences), allowed=allowed, seed=config.finetune.seed)
    if choice is None:
        log.info("factors: %s: profiles: no better for users left out: left out", LISTING)
        return factors, later, {}
    gained = choice.ndcg, choice.ndcg_without
    log.info("factors: %s: profiles: ndcg of users left out %.4f, without %.4f", LISTING, *gained)
    of_train, whole = (profiles.fit(table, x, one.sequences, choice.variance) for one in (early, late))
    told = {"profiles_ndcg": choice.ndcg, "ndcg_without": choice.ndcg_without}
    return replace(factors, profile=of_train), replace(later, profile=whole), told


def _questions(data: Data, known: Known, n_history: int) -> list[Question]:
    """The valid examples, as what is known of the users before their moments: of those with history, unless few.

    Of the others factors say offsets alone. Where most are such, how good those are is what the valid split asks.
    """
    n_items, found = len(data.catalog.item_ids), []
    for row, (user, moment) in enumerate(zip(data.valid.users.tolist(), data.valid.moments.tolist(), strict=True)):
        items, own_labels = known.sequences.before(user, moment, n_history)
        own = np.searchsorted(data.seen, [user * n_items, (user + 1) * n_items])
        seen = known.places(data.seen[own[0] : own[1]] - user * n_items)
        targets = known.places(np.maximum(data.valid.targets[row], 0))
        asked = (data.valid.targets[row] >= 0) & (targets >= 0)
        labels = data.valid.labels[row][asked] > 0.5
        found.append(Question(user, items, own_labels, targets[asked], labels, seen[seen >= 0]))
    of_known = [one for one in found if len(one.items)]
    return found if len(of_known) < min(FEWEST_USERS, len(found) - len(of_known)) else of_known
