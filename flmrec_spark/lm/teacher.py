"""Distillation: a finished checkpoint says how probable it finds the pairs of a step (Hinton et al. 2015).

The teacher reads the same histories and items with its own template, tokenizer, join and calibration, so it may be of
another family, larger, or a `full` one that would be too slow to score with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flmrec_spark import columns as c
from flmrec_spark.errors import ConfigError
from flmrec_spark.lm import checkpoint, text_factors
from flmrec_spark.lm.batches import Step, step_of
from flmrec_spark.lm.collaborative import Collaborative
from flmrec_spark.lm.dataset import Catalog, Examples, Floats
from flmrec_spark.lm.segments import Segmenter
from flmrec_spark.lm.terms import Terms
from flmrec_spark.lm.training import BiasTerms, rating_parts


class Teacher:
    """A checkpoint and everything that it needs to judge a step.

    Args:
      train: examples with their sources.
      fields: attribute names of items and of users in the tables.
      tastes_of: gives the tastes (R, F) of the train examples by some factors, its profiles read by a segmenter.

    Raises:
      CheckpointError: the folder is no whole checkpoint.
      ConfigError: its template names an attribute that the tables lack.
    """

    def __init__(
        self,
        folder: str,
        catalog: Catalog,
        train: Examples,
        user_ids: Sequence[str],
        fields: tuple[Sequence[str], Sequence[str]],
        device: torch.device,
        tastes_of: Callable[[Collaborative, Segmenter], Floats],
    ) -> None:
        found = checkpoint.load(folder)
        try:
            found.template.check(item_fields=[c.TITLE, c.ITEM_ID, *fields[0]], user_fields=fields[1])
        except ConfigError as fault:
            raise ConfigError(f"finetune.teacher: {folder}: {fault}") from fault
        self.segmenter = found.segmenter()
        self.calibrations = found.blend.calibration, (found.new_users or found.blend).calibration
        self.model = found.model().to(device).requires_grad_(False)
        self.sources = train.sources
        segments = self.segmenter.items(catalog.fields)
        self.is_known = np.array([segment is not None for segment in segments])
        self.items = self.segmenter.block([segment or self.segmenter.unknown_item for segment in segments])
        self._prefixes: dict[int, list[int] | None] = {}
        factors = found.collaborative(of_train=True)  # not of the valid split, which stops the student
        known = catalog.ids(), self.items, self.model
        items = None if factors is None else text_factors.of_items(factors, *known)
        self.terms = Terms(items, hidden_share=0.0).to(device).eval()
        self.tastes = None if factors is None else tastes_of(factors, self.segmenter)
        self.log_totals = None if items is None or self.tastes is None else items.log_totals(self.tastes)  # (R,)
        biases = found.biases(of_train=True)
        user = [biases.user.get(user, 0.0) for user in user_ids]
        item = [biases.item.get(item, 0.0) for item in catalog.item_ids]
        self.bias = _fixed(user, item).to(device)

    @torch.no_grad()
    def probabilities(self, step: Step) -> Tensor:
        """float32 (B, G + K); nan where there is no item, or one of the two prompts does not fit the teacher."""
        prefixes = [self._prefix(row) for row in step.rows.tolist()]
        block = self.segmenter.block([prefix or self.segmenter.unknown_item for prefix in prefixes])
        if self.tastes is not None:
            block = replace(block, factors=self.tastes[step.rows])
        own = step_of(block, step.users, step.items, step.labels, step.rows)
        text, term, listing = rating_parts(self.model, self.bias, own, self.items, self.terms)
        asked = (step.items >= 0) & self.is_known[np.maximum(step.items, 0)]
        asked &= np.array([prefix is not None for prefix in prefixes])[:, None]
        how = [self.calibrations[not self.sources[row].history] for row in step.rows.tolist()]
        slope, factors, intercept, share, level = (
            torch.tensor([[getattr(one, name)] for one in how], device=text.device)
            for name in ("slope", "factors", "intercept", "listing", "level")
        )
        if self.log_totals is not None:
            totals = torch.from_numpy(self.log_totals[step.rows][:, None]).to(text.device)
            intercept = intercept + share * (listing - totals - level)
        found = torch.sigmoid(slope * text + factors * term + intercept)
        return found.masked_fill(~torch.from_numpy(asked).to(found.device), torch.nan)

    def _prefix(self, row: int) -> list[int] | None:
        if row not in self._prefixes:
            source = self.sources[row]
            segment = self.segmenter.user(source.profile, source.history)
            self._prefixes[row] = None if segment is None else segment.ids
        return self._prefixes[row]


def soft_loss(logits: Tensor, probabilities: Tensor, n_pairs: int) -> Tensor:
    """Binary cross-entropy of logits (B, G + K) against the teacher's probabilities, over `n_pairs` of a whole step."""
    told = ~probabilities.isnan()
    summed: Tensor = nn.functional.binary_cross_entropy_with_logits(logits[told], probabilities[told], reduction="sum")
    return summed / max(1, n_pairs)


def _fixed(user: list[float], item: list[float]) -> BiasTerms:
    bias: Any = BiasTerms(None, None)
    bias.user, bias.item = (nn.Parameter(torch.tensor(part), requires_grad=False) for part in (user, item))
    return bias.eval()  # type: ignore[no-any-return]
