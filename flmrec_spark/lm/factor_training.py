"""Learns collaborative factors from who liked what, before the language model is fine-tuned.

A row is one user at a moment: their history strictly before it, and the next `targets_per_row` interactions. So a
user's own targets are never in the taste that is asked about them, as in use. `rating` factors lower the binary
cross-entropy of liked or not, or of how much (`grades`), beside bias terms that are thrown away (the language model has
its own); `listing` factors that of each liked target among all items (or among a draw of _DRAWN, when there are more).

Weight decay and dropout are what keeps a few rows per item from being learned by heart; the epoch with the best UAUC,
or NDCG@10, on the valid split wins. Where that asks about no item of the training (cold items), the last one does.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from flmrec_spark.config import CollaborativeConfig, FactorTrainingConfig
from flmrec_spark.lm.collaborative import LISTING, RATING, Bools, Factors, Floats, Places
from flmrec_spark.lm.factor_validation import METRIC, Question, measured
from flmrec_spark.lm.sequences import Batch, Sequences

log = logging.getLogger("flmrec")

_START = 0.05  # standard deviation of the factors before training
_DRAWN = 20_000  # items that a liked one is told apart from, at most
_BIAS_DROPOUT = 0.2


def fit(
    sequences: Sequences,
    questions: list[Question],
    *,
    objective: str,
    is_drawable: Bools,
    model: CollaborativeConfig,
    training: FactorTrainingConfig,
    seed: int,
    device: torch.device,
    has_bias_terms: bool = True,
    start: tuple[Factors, Places] | None = None,
    epochs: int | None = None,
) -> tuple[Factors, dict[str, float]]:
    """Factors of one objective, and the best validation: {uauc or ndcg, epoch}, the epoch alone without questions.

    Args:
      sequences: the rows to learn from.
      questions: held-out ones to stop by; none: the last epoch wins.
      is_drawable: (N,), false for an item that no list may hold.
      has_bias_terms: the language model has offsets of its own, so those of ratings are relative to them.
      start: factors to go on from, and the place of each item (N,) in them, -1 for a new one.
      epochs: instead of the setting.
    """
    random = np.random.default_rng([seed, 5, objective == LISTING])
    torch.manual_seed(seed * 2 + (objective == LISTING))
    module = _Module(sequences, objective, is_drawable, model, training, has_bias_terms)
    if start is not None:
        module.go_on_from(*start)
    module.to(device)
    n_epochs = training.epochs if epochs is None else epochs
    tables, plain = module.groups()
    groups = [
        {"params": tables, "weight_decay": training.weight_decay, "share": 1.0},
        {"params": plain, "weight_decay": 0.0, "share": 0.3},
    ]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate)
    rows = sequences.rows(training.targets_per_row)
    n_steps = n_epochs * -(-len(rows) // training.rows_per_step)
    step, found, top, n_worse = 0, module.factors(), -math.inf, 0
    told: dict[str, float] = {"epoch": n_epochs}
    for epoch in range(n_epochs):
        module.train()
        for own in _parts(random.permutation(len(rows)), training.rows_per_step):
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate * group["share"] * (1.0 - step / n_steps)
            optimizer.zero_grad(set_to_none=True)
            module.loss(sequences.batch(rows[own], n_history=model.history_length), random).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
        now = module.factors()
        if not questions:
            found = now
            continue
        value = measured(now, questions, objective=objective, allowed=is_drawable, offset=module.whole_offset())
        log.info("factors: %s: epoch %d: %s %.4f", objective, epoch + 1, METRIC[objective], value)
        n_worse = 0 if value > top or math.isnan(value) else n_worse + 1  # nan: nothing to stop by
        if value > top or math.isnan(value):
            found, top, told = now, value, {METRIC[objective]: value, "epoch": epoch + 1}
        if n_worse >= training.patience:
            break
    return found, told


class _Module(nn.Module):
    def __init__(
        self,
        sequences: Sequences,
        objective: str,
        is_drawable: Bools,
        model: CollaborativeConfig,
        training: FactorTrainingConfig,
        has_bias_terms: bool = True,
    ) -> None:
        super().__init__()
        n, d = sequences.n_items, model.dimension
        self.objective, self.recency, self.training_config, self.n_items = objective, model.recency, training, n
        self.history = nn.Parameter(torch.randn(2 * n, d) * _START)
        self.target = nn.Parameter(torch.randn(n, d) * _START)
        self.mix = nn.Parameter(torch.ones(2))
        own = sequences.offsets
        start = own.item.copy() if objective == RATING else sequences.item_log_likes()
        self.offset = nn.Parameter(torch.from_numpy(start))
        self.user = nn.Parameter(torch.from_numpy(own.user.copy()))
        self.level = nn.Parameter(torch.tensor(sequences.level()))
        self.register_buffer("hidden", torch.from_numpy(~is_drawable))
        # What the language model's bias terms begin with is theirs.
        is_theirs = objective == RATING and has_bias_terms
        self._start = torch.from_numpy(start.copy() if is_theirs else np.zeros_like(start))

    @torch.no_grad()
    def go_on_from(self, start: Factors, places: Places) -> None:
        """Takes over what is known of items, and of them all how a taste is made."""
        old, new = places[places >= 0], torch.from_numpy(np.flatnonzero(places >= 0))
        self.target[new] = torch.from_numpy(start.target[old])
        for shift, begin in ((0, 0), (self.n_items, start.n_items)):
            self.history[new + shift] = torch.from_numpy(start.history[old + begin])
        self.mix.copy_(torch.from_numpy(start.mix))
        offset = torch.from_numpy(start.offset[old])
        self.offset[new] = self._start[new] + offset

    def groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Factors, and everything else."""
        return [self.history, self.target], [self.mix, self.offset, self.user, self.level]

    def whole_offset(self) -> Floats:
        """(N + 1,): with what the language model's bias terms begin with."""
        return np.append(self.offset.detach().cpu().numpy(), np.float32(0))

    def loss(self, batch: Batch, random: np.random.Generator) -> Tensor:
        batch = Batch(*[part.to(self.mix.device) for part in vars(batch).values()])
        settings = self.training_config
        share = settings.rating_dropout if self.objective == RATING else settings.dropout
        taste = nn.functional.dropout(self._tastes(batch), share, training=self.training)
        asked = batch.targets.clamp(min=0)
        is_asked = batch.targets >= 0
        if self.objective == RATING:
            bias = (
                _thinned(self.offset[asked], _BIAS_DROPOUT) + _thinned(self.user[batch.users], _BIAS_DROPOUT)[:, None]
            )
            logits = self.level + bias + torch.einsum("bd,btd->bt", taste, self.target[asked])
            found: Tensor = nn.functional.binary_cross_entropy_with_logits(logits[is_asked], batch.labels[is_asked])
            return found
        liked = is_asked & (batch.labels > 0.5) & ~self.hidden[asked]  # type: ignore[index]
        own = self.offset[asked] + torch.einsum("bd,btd->bt", taste, self.target[asked])
        against = self._against(random)
        logits = self.offset[against] + taste @ self.target[against].T
        logits = logits.masked_fill(self.hidden[against], -torch.inf)  # type: ignore[index]
        if len(against) < self.n_items:  # a draw stands for all: what it lacks of the sum, and the target itself
            scaled = logits.logsumexp(1, keepdim=True) + math.log(self.n_items / len(against))
            total = torch.logaddexp(scaled, own)
        else:
            total = logits.logsumexp(1, keepdim=True)
        return ((total - own) * liked).sum() / liked.sum().clamp(min=1)

    def _against(self, random: np.random.Generator) -> Tensor:
        if self.n_items <= _DRAWN:
            return torch.arange(self.n_items, device=self.mix.device)
        return torch.from_numpy(random.choice(self.n_items, size=_DRAWN, replace=False)).to(self.mix.device)

    def _tastes(self, batch: Batch) -> Tensor:
        share = self.training_config.history_dropout if self.training else 0.0
        kept = torch.rand(len(batch.rows), device=batch.rows.device) >= share
        ends = torch.cat([batch.starts[1:], batch.starts.new_tensor([len(batch.rows)])])
        sizes = ends - batch.starts
        row = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
        n_kept = torch.zeros(len(sizes), device=sizes.device).index_add_(0, row, kept.float()).clamp(min=1)
        recent = torch.exp(-batch.ages / self.recency) / math.sqrt(self.recency)
        weights = kept * (self.mix[0] / n_kept.sqrt()[row] + self.mix[1] * recent)
        found: Tensor = nn.functional.embedding_bag(
            batch.rows, self.history, batch.starts, mode="sum", per_sample_weights=weights
        )
        return found

    def factors(self) -> Factors:
        """As they are now, on the CPU."""
        history, target, offset = (part.detach().cpu().clone() for part in (self.history, self.target, self.offset))
        offset = offset - self._start
        target = torch.cat([target, torch.zeros(1, target.shape[1])])
        offset = torch.cat([offset, offset.mean()[None]])
        return Factors(
            history.numpy(), target.numpy(), offset.numpy(), self.mix.detach().cpu().clone().numpy(), self.recency
        )


def _thinned(values: Tensor, share: float) -> Tensor:
    return values * (torch.rand_like(values) >= share)


def _parts(order: Places, size: int) -> Iterator[Places]:
    for start in range(0, len(order), size):
        yield order[start : start + size]
