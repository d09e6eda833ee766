"""The parts of fine-tuning: bias terms, forward, loss, optimizer and schedule.

One row of training is one user prefix and the items it is asked about; the prefix is encoded once for all of
them, and an item that several users are asked about is encoded once up to the join.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flmrec_spark.config import FinetuneConfig
from flmrec_spark.lm.batches import Step
from flmrec_spark.lm.biases import Biases
from flmrec_spark.lm.collaborative import LISTING, RATING
from flmrec_spark.lm.dataset import Floats
from flmrec_spark.lm.layers import layer_of, n_layers
from flmrec_spark.lm.model import ItemStates, Segment, SegmentedModel, concatenated
from flmrec_spark.lm.terms import Shown, Terms
from flmrec_spark.lm.token_block import TokenBlock

_BUCKET_TOKENS = 8
_EMBEDDING = re.compile(r"embed|wte|wpe|shared")


class BiasTerms(nn.Module):
    """Offsets on the logit by user and item.

    Args:
      users, items: where they start, float32 (U,) and (N,); None for both leaves the terms out.
    """

    def __init__(self, users: Floats | None, items: Floats | None) -> None:
        super().__init__()
        self.user = nn.Parameter(torch.zeros(0) if users is None else torch.from_numpy(users.copy()))
        self.item = nn.Parameter(torch.zeros(0) if items is None else torch.from_numpy(items.copy()))

    def forward(self, users: Tensor, items: Tensor, dropout: float, is_shown: Tensor | None = None) -> Tensor | float:
        """users (B,), items (B, G) -> offsets (B, G); in training a share of the terms is 0, as for unknown ids.

        `is_shown` (B, G) says which of the items have theirs, in place of a draw.
        """
        if not len(self.user):
            return 0.0
        user, item = self.user[users][:, None], self.item[items.clamp(min=0)]
        if self.training and dropout > 0:
            user = user * (torch.rand_like(user) >= dropout)
            if is_shown is None:
                item = item * (torch.rand_like(item) >= dropout)
        return user + (item if is_shown is None else item * is_shown)

    def named(self, user_ids: list[str], item_ids: list[str]) -> Biases:
        if not len(self.user):
            return Biases({}, {})
        user, item = self.user.detach().tolist(), self.item.detach().tolist()
        return Biases(dict(zip(user_ids, user, strict=True)), dict(zip(item_ids, item, strict=True)))


def step_logits(
    model: SegmentedModel,
    bias: BiasTerms,
    step: Step,
    catalog: TokenBlock,
    *,
    bias_dropout: float,
    terms: Terms | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Logits (B, G + K) of a step, float32: of `rating`, and of `listing` where the model has that head.

    The columns without an item are meaningless.
    """
    text, listing, shown, grid = _step_parts(model, bias, step, catalog, bias_dropout, terms)
    rating = text + shown.term(RATING, grid)
    return rating, None if listing is None else listing + shown.term(LISTING, grid)


def rating_parts(
    model: SegmentedModel, bias: BiasTerms, step: Step, catalog: TokenBlock, terms: Terms
) -> tuple[Tensor, Tensor | float, Tensor | float]:
    """The language model with the bias terms, and the factors of ratings and of lists, (B, G + K) each.

    The first two make the rating of `step_logits`.
    """
    text, _, shown, grid = _step_parts(model, bias, step, catalog, 0.0, terms)
    return text, shown.term(RATING, grid), shown.term(LISTING, grid)


def _step_parts(
    model: SegmentedModel, bias: BiasTerms, step: Step, catalog: TokenBlock, bias_dropout: float, terms: Terms | None
) -> tuple[Tensor, Tensor | None, Shown, Tensor]:
    device = model.rating.offset.device
    grid = torch.from_numpy(step.grid).to(device)
    users, items = torch.from_numpy(step.users).to(device), torch.from_numpy(step.items).to(device)
    distinct = torch.from_numpy(step.distinct).to(device)
    prefixes = Segment.of(step.prefixes, device)
    texts = Segment.of(catalog.take(step.distinct.astype(np.intp)), device)
    shown = (terms or Terms(None, hidden_share=0.0)).shown(prefixes.factors, distinct)
    prefixes, texts = replace(prefixes, factors=shown.users), replace(texts, factors=shown.items)
    if model.join == "full":
        n_rows, n_asked = grid.shape
        rows = torch.arange(n_rows, device=device).repeat_interleave(n_asked)
        hidden, pooled = model.pair(prefixes.take(rows), texts.take(grid.flatten()))
        hidden, pooled = hidden.view(n_rows, n_asked, -1), pooled.view(n_rows, n_asked, -1)
    else:
        states = model.encode_users(prefixes.ids, prefixes.lengths, prefixes.factors)
        hidden, pooled = model.joined(states, encode_in_buckets(model, texts), grid), states.pooled[:, None]
    offsets: Tensor | float = bias(users, items, bias_dropout, shown.bias_is_shown(grid))
    listing = None if model.listing is None else model.listing(hidden, pooled)
    return model.rating(hidden, pooled) + offsets, listing, shown, grid


def attention(device: str) -> AbstractContextManager[None]:
    """The attention kernel of training: on a CPU two plain products, as the backward pass of the fused one is slow.

    Measured on one core with MiniLM's shape and prompts of 64 tokens: a bf16 step takes 1.63 s instead of 2.48 s.
    """
    return sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()


def encode_in_buckets(model: SegmentedModel, items: Segment) -> ItemStates:
    """`model.encode_items` on groups of similar length, so that a few long items do not pad the many short ones."""
    ids = items.ids
    rounds = (items.lengths + _BUCKET_TOKENS - 1) // _BUCKET_TOKENS  # (N,)
    parts, rows = [], []
    for size in torch.unique(rounds).tolist():
        own = (rounds == size).nonzero()[:, 0]
        width = min(size * _BUCKET_TOKENS, ids.shape[1])
        part = items.take(own)
        states = model.encode_items(part.ids[:, :width], part.lengths, part.factors)
        parts.append(states.padded(ids.shape[1], keeps_tokens=model.keeps_tokens))
        rows.append(own)
    return concatenated(parts).take(torch.cat(rows).argsort())


def loss(
    rating: Tensor, listing: Tensor | None, part: Step, *, whole: Step, log_share: Floats, config: FinetuneConfig
) -> Tensor:
    """rating_weight * binary cross-entropy on the observed + ranking_weight * softmax of each liked item against the
    row's negatives, corrected for how often each is drawn (sampled softmax: Bengio and Senecal 2008, eq. 10).

    Divided by the counts of the whole step, so the losses of its parts add up to its own.
    """
    n_observed, device = part.labels.shape[1], rating.device
    items = torch.from_numpy(part.items).to(device)
    labels = torch.from_numpy(part.labels).to(device)
    observed = torch.from_numpy(part.is_observed).to(device)
    smooth = labels[observed] * (1.0 - config.label_smoothing) + 0.5 * config.label_smoothing
    told: Tensor = nn.functional.binary_cross_entropy_with_logits(
        rating[:, :n_observed][observed], smooth, reduction="sum"
    ) / max(1, int(whole.is_observed.sum()))
    if listing is None:
        return config.rating_weight * told
    share = torch.from_numpy(log_share).to(device)[items.clamp(min=0)]
    corrected = (listing - share).masked_fill(items < 0, -torch.inf)
    ranked = torch.from_numpy(part.is_ranked).to(device)
    rows = ranked.nonzero()[:, 0]
    against = corrected[:, n_observed:][rows].logsumexp(1)  # one per ranked item, each with a finite negative
    margin = corrected[:, :n_observed][ranked] - against
    ranking = -nn.functional.logsigmoid(margin).sum() / max(1, int(whole.is_ranked.sum()))
    return config.rating_weight * told + config.ranking_weight * ranking


def optimizer(model: SegmentedModel, bias: BiasTerms, config: FinetuneConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over the backbone, the head and the bias terms; no decay on vectors and scalars.

    With `layer_decay` below 1 the rate of a layer is that of the one above it times layer_decay, and the embeddings'
    that of the first layer times it (Howard and Ruder 2018; Sun et al. 2019).
    """
    groups: list[dict[str, object]] = []
    for factor, parameters in _by_depth(model.backbone, config.layer_decay):
        decayed = [parameter for parameter in parameters if parameter.ndim > 1]
        plain = [parameter for parameter in parameters if parameter.ndim <= 1]
        rate = config.learning_rate * factor
        groups.append({"params": decayed, "lr": rate, "weight_decay": config.weight_decay})
        groups.append({"params": plain, "lr": rate, "weight_decay": 0.0})
    head = [parameter for name, parameter in model.named_parameters() if not name.startswith("backbone.")]
    groups += [
        {"params": head, "lr": config.head_learning_rate, "weight_decay": 0.0},
        {"params": list(bias.parameters()), "lr": config.bias_learning_rate, "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def _by_depth(backbone: nn.Module, layer_decay: float) -> list[tuple[float, list[nn.Parameter]]]:
    """(factor on the rate, parameters that train), from the embeddings up; all at once when nothing decays."""
    trained = [(name, value) for name, value in backbone.named_parameters() if value.requires_grad]
    if layer_decay == 1.0:
        return [(1.0, [value for _, value in trained])]
    top = n_layers(backbone)
    found: dict[int, list[nn.Parameter]] = {}
    for name, value in trained:
        depth = layer_of(name)
        if depth is None:  # embeddings lie below the first layer, a last norm above the last
            depth = -1 if _EMBEDDING.search(name) else top - 1
        found.setdefault(depth, []).append(value)
    return [(layer_decay ** (top - 1 - depth), found[depth]) for depth in sorted(found)]


def rate_factor(config: FinetuneConfig, n_steps: int) -> Callable[[int], float]:
    """Step (from 0) -> factor on every learning rate: a linear rise, then the schedule's fall to 0."""
    n_warm = math.ceil(config.warmup_share * n_steps)

    def factor(step: int) -> float:
        if step < n_warm:
            return (step + 1) / n_warm
        done = (step - n_warm) / max(1, n_steps - n_warm)
        if config.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        return 1.0 if config.schedule == "constant" else max(0.0, 1.0 - done)

    return factor
