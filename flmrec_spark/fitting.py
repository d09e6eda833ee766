"""Fits baselines on the driver by name, and sends them to the executors as one file."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import joblib
import numpy as np
from pyspark import SparkFiles
from pyspark.sql import DataFrame, SparkSession

from flmrec_spark import columns as c
from flmrec_spark.config import DiversityConfig
from flmrec_spark.errors import InputError
from flmrec_spark.prompts import Template
from flmrec_spark.reranking import PLAIN, Reranker
from flmrec_spark.ship import listable
from flmrec_spark.stages.baselines import als, content, counts, logistic, neighbours
from flmrec_spark.stages.baselines.lists import Pack, Packed
from flmrec_spark.stages.baselines.world import Baseline, Bools, World
from flmrec_spark.stages.diversity import of_texts

log = logging.getLogger("flmrec")


@dataclass(frozen=True)
class Tools:
    """What some fits need besides the world."""

    spark: SparkSession
    read_template: Callable[[], Template]  # by which the items' texts are rendered; few baselines ask for one
    model_path: str  # pretrained model of content_lm; only that opens it
    _of_texts: dict[str, tuple[list[str], Baseline]] = field(default_factory=dict, init=False, compare=False)

    @cached_property
    def template(self) -> Template:
        """Raises ConfigError as `prompts.load_template`."""
        return self.read_template()

    def texts(self, world: World) -> list[str]:
        return [self.template.render_item(fields) for fields in world.item_fields]

    def of_texts(self, name: str, world: World, make: Callable[[list[str]], Baseline]) -> Baseline:
        """What `make` gives of the items' texts, made once: the hybrid has everything fitted on two histories."""
        texts = self.texts(world)
        if name not in self._of_texts or self._of_texts[name][0] != texts:
            self._of_texts[name] = texts, make(texts)
        return self._of_texts[name][1]


def _embedded(texts: list[str], tools: Tools) -> Baseline:
    from flmrec_spark.lm.embeddings import embed_texts  # here: nothing else needs torch

    return content.embedded(embed_texts(tools.model_path, texts))


FITS: Mapping[str, Callable[[World, Tools], Baseline]] = {
    "popularity": lambda world, _: counts.popularity(world),
    "item_mean": lambda world, _: counts.item_mean(world),
    "user_mean": lambda world, _: counts.user_mean(world),
    "user_item_mean": lambda world, _: counts.user_item_mean(world),
    "logistic_regression": lambda world, _: logistic.logistic_regression(world),
    "als": lambda world, tools: als.als(world, tools.spark),
    "item_knn": lambda world, _: neighbours.item_knn(world),
    "ease": lambda world, _: neighbours.ease(world),
    "markov": lambda world, _: neighbours.markov(world),
    "content_tfidf": lambda world, tools: tools.of_texts("content_tfidf", world, content.tf_idf),
    "content_lm": lambda world, tools: tools.of_texts("content_lm", world, lambda texts: _embedded(texts, tools)),
}


def fit(name: str, world: World, tools: Tools) -> Baseline:
    """One baseline.

    Raises:
      InputError: `ease` with too many items.
      CheckpointError: `content_lm` with a model that does not load.
    """
    return FITS[name](world, tools)


def listed_items(items: DataFrame, item_filter: str | None, item_ids: Sequence[str]) -> Bools:
    """Whether each item may stand in a list, (N,). Raises ConfigError as `ship.listable`."""
    if item_filter is None:
        return np.ones(len(item_ids), dtype=bool)
    allowed = set(listable(items, item_filter).select(c.ITEM_ID).toArrow()[c.ITEM_ID].to_pylist())
    return np.array([item in allowed for item in item_ids], dtype=bool)


def reranker(diversity: DiversityConfig | None, world: World, tools: Tools) -> Reranker:
    """What makes baselines' lists diverse, to be sent with them."""
    return of_texts(diversity, lambda: tools.texts(world), world.item_fields)


def send(
    spark: SparkSession,
    world: World,
    fitted: Mapping[str, Baseline],
    is_listed: Bools,
    reranker: Reranker = PLAIN,
) -> Packed:
    """The fitted baselines on their way to every executor."""
    pack = Pack(world.item_ids, is_listed, counts.popularity(world), dict(fitted), reranker)
    # The application's own folder: it lives as long as executors may ask for the file, and Spark removes it.
    folder = Path(SparkFiles.getRootDirectory()) / "flmrec-driver"
    folder.mkdir(exist_ok=True)
    draft = folder / "baselines.joblib"
    joblib.dump(pack, draft)
    with draft.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    target = draft.rename(folder / f"{digest}.joblib")
    spark.sparkContext.addFile(str(target))
    return Packed(digest, target.name)


def fit_all(
    names: Sequence[str], world: World, tools: Tools, *, timed: Callable[[str], AbstractContextManager[None]]
) -> dict[str, Baseline]:
    """The named baselines in their order; those that the world is too large for are left out, with a warning."""
    fitted = {}
    for name in names:
        with timed(f"fit {name}"):
            try:
                fitted[name] = fit(name, world, tools)
            except InputError as fault:
                log.warning("baselines: %s; it is left out", fault)
    return fitted
