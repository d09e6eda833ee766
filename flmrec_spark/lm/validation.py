"""How good a model is on held-out examples, measured as it is served, and the calibration fitted on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from flmrec_spark import metrics
from flmrec_spark.lm.checkpoint import Calibration
from flmrec_spark.lm.dataset import Catalog, Examples, Floats, Index
from flmrec_spark.lm.kernels import can_pack
from flmrec_spark.lm.model import SegmentedModel
from flmrec_spark.lm.scorer import Scorer
from flmrec_spark.lm.training import BiasTerms
from flmrec_spark.ranking import best

_K = 10  # cut-off of the validation's NDCG


@dataclass(frozen=True)
class Validation:
    """Metrics of a model on held-out examples, and the logits that they were computed from."""

    metrics: Mapping[str, float]
    logits: Floats
    labels: Floats


def validate(
    model: SegmentedModel,
    bias: BiasTerms,
    data: Examples,
    catalog: Catalog,
    *,
    seen: npt.NDArray[np.int64],
    precision: str,
) -> Validation:
    """AUC, UAUC and log-loss on the observed targets; NDCG@10 of the liked ones among all items not seen in training.

    NDCG is nan for `join: full`. `seen` holds sorted keys user * N + item. A row of `data` must hold all targets of
    its prefix, not a part of them.
    """
    was_training = model.training
    model.eval()
    device = model.offset.device
    packed = device.type == "cpu" and can_pack()
    scorer = Scorer(model, catalog.tokens, precision=precision, device=str(device), packed=packed)
    user_bias, item_bias = (part.detach().cpu().numpy() for part in (bias.user, bias.item))
    n_items, n_rows = len(catalog.item_ids), len(data)
    is_target = data.targets >= 0
    logits = np.zeros(data.targets.shape, dtype=np.float32)
    hits, n_relevant = np.zeros((n_rows, _K), dtype=bool), np.zeros(n_rows)
    is_liked = is_target & (data.labels > 0.5)
    for row, user in enumerate(data.users.tolist()):
        targets = data.targets[row][is_target[row]]
        if model.join == "full":  # a whole catalogue of stock pairs for each user would take hours
            offsets = item_bias[targets] + user_bias[user] if len(user_bias) else 0.0
            logits[row, : len(targets)] = scorer.logits(data.prefixes[row], items=targets) + offsets
            continue
        scores = scorer.logits(data.prefixes[row])
        if len(user_bias):
            scores = scores + item_bias + user_bias[user]
        logits[row, : len(targets)] = scores[targets]
        own = np.searchsorted(seen, [user * n_items, (user + 1) * n_items])
        rated = seen[own[0] : own[1]] - user * n_items
        top = best(scores, _K, allowed=catalog.is_known & ~np.isin(np.arange(n_items), rated))
        relevant = np.setdiff1d(data.targets[row][is_liked[row]], rated)  # each once: a log repeats itself
        hits[row, : len(top)] = np.isin(top, relevant)
        n_relevant[row] = len(relevant)
    model.train(was_training)
    users = np.repeat(data.users, is_target.sum(1))
    found = _measured(users, data.labels[is_target], logits[is_target])
    found["ndcg"] = _mean(metrics.ndcg(hits, n_relevant, k=_K))
    return Validation(found, logits[is_target], data.labels[is_target])


def _measured(users: Index, labels: Floats, logits: Floats) -> dict[str, float]:
    return {
        "auc": metrics.auc(labels, logits),
        "uauc": metrics.uauc(users, labels, logits),
        "log_loss": metrics.log_loss(labels, Calibration().probability(logits)),
    }


def calibrate(validation: Validation) -> Calibration:
    """Platt's scaling on held-out logits (Platt 1999): maximum likelihood, of targets just inside 0 and 1.

    Stays the identity when there is one label only, or when the logits order the labels backwards.
    """
    if len(np.unique(validation.labels)) < 2:
        return Calibration()
    liked = validation.labels > 0.5
    # Platt's targets: without them separable rows would drive the slope, and every probability, to the limit.
    target = np.where(liked, (liked.sum() + 1) / (liked.sum() + 2), 1 / ((~liked).sum() + 2))
    rows, weights = np.tile(validation.logits, 2)[:, None], np.concatenate([target, 1 - target])
    sides = np.repeat([True, False], len(target))
    fitted = LogisticRegression(C=np.inf, max_iter=1000).fit(rows, sides, sample_weight=weights)
    slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    return Calibration(slope, intercept) if slope > 0 else Calibration()


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
