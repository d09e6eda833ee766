"""`score.diversity` where the lists are made: what items are compared by, and which of them a cap counts together.

For the language model and the hybrid, items are compared by the model's item states; for baselines, which need no
checkpoint, and for `join: full`, which has no such states, by TF-IDF of their rendered text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flmrec_spark import columns as c
from flmrec_spark.config import DiversityConfig
from flmrec_spark.errors import ConfigError
from flmrec_spark.reranking import PLAIN, Reranker, SparseVectors, Vectors, caps_of

Fields = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Diverse:
    """Lists to be made beside the plain ones, or instead."""

    config: DiversityConfig
    n: int  # their length


def diversified(model: str) -> str:
    """What a model's diverse lists are called in the column `model`."""
    return f"{model}_diverse"


def told(config: DiversityConfig) -> str:
    """One line for a run's record and its commits."""
    caps = [f"at most {most} of one {name}" for name, most in config.caps.items()]
    return ", ".join([f"relevance {config.relevance:g}", f"pool {config.pool}", *caps])


def checked(config: DiversityConfig, columns: Sequence[str]) -> DiversityConfig | None:
    """The config; None when it is off.

    Raises:
      ConfigError: a cap is on what items do not have.
    """
    known = [name for name in columns if name != c.ITEM_ID]
    unknown = sorted(set(config.caps) - set(known))
    if unknown:
        raise ConfigError(f"score.diversity.caps: got {unknown[0]}, expected a column of items: {', '.join(known)}")
    return config if config.is_on else None


def of_texts(config: DiversityConfig | None, texts: Callable[[], Sequence[str]], fields: Fields) -> Reranker:
    """For a catalogue of N items and what gives their rendered texts; without a config lists are the plain ones."""
    return PLAIN if config is None else _reranker(config, _tf_idf(texts()) if config.relevance < 1 else None, fields)


def of_worker(config: DiversityConfig | None, worker: Any) -> Reranker:
    """For the items of the scorer of a `lm.worker.Worker`, made once in a process; otherwise as `of_texts`."""
    if config is None:
        _MADE.clear()  # nor is an old run's model kept
        return PLAIN
    if not _MADE or _MADE[0][0] is not worker or _MADE[0][1] != config:
        fields = [worker.catalogue.fields[place] for place in worker.catalogue.listed]
        _MADE[:] = [(worker, config, _reranker(config, _of_states(config, worker, fields), fields))]
    return _MADE[0][2]


_MADE: list[tuple[Any, DiversityConfig, Reranker]] = []


def _of_states(config: DiversityConfig, worker: Any, fields: Fields) -> Vectors | None:
    if config.relevance == 1.0:
        return None
    if worker.scorer.items.states is None:
        return _tf_idf([worker.segmenter.template.render_item(item) for item in fields])
    from flmrec_spark.lm.item_vectors import ItemVectors  # here: the driver needs no torch to plan the stage

    return ItemVectors(worker.scorer)


def _tf_idf(texts: Sequence[str]) -> Vectors:
    from flmrec_spark.stages.baselines.content import tf_idf  # here: most runs compare no texts

    return SparseVectors(tf_idf(texts).vectors)


def _reranker(config: DiversityConfig, vectors: Vectors | None, fields: Fields) -> Reranker:
    return Reranker(config.relevance, config.pool, vectors, caps_of(fields, config.caps, config.separators))
