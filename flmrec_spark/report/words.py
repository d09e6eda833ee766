"""What the page calls a metric, and what it says that it is."""

from __future__ import annotations

from collections.abc import Mapping

from flmrec_spark import list_metrics, metrics
from flmrec_spark.stages.segments import BANDS, band

NAMES: Mapping[str, str] = {
    "auc": "AUC",
    "uauc": "UAUC",
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "log_loss": "Log-loss",
    "brier": "Brier score",
    "calibration_error": "Calibration error",
    "ndcg": "NDCG",
    "hit_rate": "Hit rate",
    "map": "MAP",
    "mrr": "MRR",
    "coverage": "Catalogue coverage",
    "gini": "Gini",
    "novelty": "Novelty",
    "average_popularity": "Average popularity",
    "head_share": "Share of popular items",
    "diversity": "Diversity",
    "serendipity": "Serendipity",
}
MEANINGS: Mapping[str, str] = {
    "auc": "how probably a liked row has a higher score than a disliked one; 0.5 is chance",
    "uauc": "AUC within each user who has both, averaged over users: knowing generous users does not help here",
    "log_loss": "mean of −ln of the probability given to what came; lower is better",
    "brier": "mean squared error of the probability; lower is better",
    "calibration_error": "how far probabilities are from the share that is liked, over ten bins; lower is better",
    "accuracy": "share of rows on the right side of 0.5; precision, recall and F1 of the rows above it",
    "ndcg": "hits of a list, each weighted by 1/log₂(rank + 1), over the best order possible",
    "recall": "share of the items to be found that are in the list",
    "precision": "share of the list that is relevant",
    "hit_rate": "share of users whose list holds a relevant item",
    "map": "precision at each hit, averaged",
    "mrr": "1 / rank of the first hit",
    "coverage": "share of the catalogue that stands in some list",
    "gini": "how unequally items are listed; 0 all alike, 1 one item alone",
    "novelty": "mean of −log₂ of an item's share of the history, in bits",
    "average_popularity": "mean number of interactions of the listed items",
    "head_share": "share of the listed items that are among the fifth of the catalogue with most interactions",
    "diversity": "mean of 1 − cosine between the items of a list, by TF-IDF of title and attributes",
    "serendipity": "share of the list that is relevant and that popularity would not have listed",
}
LOWER_IS_BETTER = metrics.LOWER_IS_BETTER
LIST_QUALITIES = list_metrics.LIST_QUALITIES
HISTORY = tuple(band(low, high) for low, high in BANDS)


def metric_name(metric: str, k: int = 0) -> str:
    name = NAMES.get(metric, metric.replace("_", " "))
    return f"{name}@{k}" if k else name


def model_name(model: str) -> str:
    return model.replace("_", " ")


def clipped(text: str, *, length: int = 160) -> str:
    """A title of any length in the room that the page has for one."""
    return text if len(text) <= length else f"{text[: length - 1]}…"
