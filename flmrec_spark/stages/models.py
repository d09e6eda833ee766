"""The models that answer in one run: the language model, the baselines, and the stack of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark.stages.baselines.lists import MODEL, Packed, lists
from flmrec_spark.stages.baselines.stacker import Stacker
from flmrec_spark.stages.diversity import Diverse, diversified
from flmrec_spark.stages.hybrid import FLM, HYBRID, IS_HELD, lists_of_both
from flmrec_spark.stages.scores import Shipped

WITH_PROBABILITY = frozenset({FLM, HYBRID, "item_mean", "user_mean", "user_item_mean", "logistic_regression"})
WITHOUT_LISTS = frozenset({"user_mean"})  # one score for all items


@dataclass(frozen=True)
class Stackers:
    """`rating` tells liked from disliked among rated items; `ranking` items that are liked next from all others.

    Where the rows that they were fitted on have one label, such as purchases alone, there is no `rating`: rated items
    are ordered by `ranking` then, which is no probability of liking.
    """

    rating: Stacker | None
    ranking: Stacker


@dataclass(frozen=True)
class Models:
    shipped: Shipped
    packed: Packed | None  # None: there is no baseline
    baselines: Sequence[str]  # as packed
    stackers: Stackers | None  # of flm and the baselines
    diverse: Diverse | None = None  # lists that are made beside the plain ones
    published: str = FLM  # score.strategy: a baseline whose lists are published has diverse ones too

    @property
    def names(self) -> list[str]:
        return [FLM, *self.baselines, *([HYBRID] if self.stackers else [])]

    @property
    def with_probability(self) -> frozenset[str]:
        """Whose scores of rated items are probabilities of liking."""
        has_none = self.stackers is not None and self.stackers.rating is None
        return WITH_PROBABILITY - {HYBRID} if has_none else WITH_PROBABILITY

    @property
    def plain(self) -> dict[str, str]:
        """Diverse lists -> the model that they are chosen from."""
        if self.diverse is None:
            return {}
        return {diversified(name): name for name in self.listing if name in (FLM, HYBRID, self.published)}

    @property
    def listing(self) -> list[str]:
        return [name for name in self.names if name not in WITHOUT_LISTS]

    def lengths(self, n: int) -> dict[str, int]:
        """How long the lists are, plain ones being of n."""
        diverse = {} if self.diverse is None else dict.fromkeys(self.plain, self.diverse.n)
        return dict.fromkeys(self.listing, n) | diverse


def said(prompts: DataFrame, models: Models, *, n: int) -> DataFrame:
    """What flm and the stack say, in one pass: the columns of `hybrid.lists_of_both`, for `answered` and `listed`.

    Args:
      prompts: with the items of c.HELD, which every user is asked about beside their list.
      n: length of a list.
    """
    stackers = models.stackers
    return lists_of_both(
        prompts,
        models.shipped,
        models.packed,
        None if stackers is None else stackers.ranking,
        n=n,
        diverse=models.diverse,
        rating=None if stackers is None else stackers.rating or stackers.ranking,
    )


def answered(ours: DataFrame, asked: DataFrame, models: Models, *, n: int) -> DataFrame:
    """model, user_id, rank, item_id, score: each user's first n candidates as rated, for every model.

    Args:
      ours: as `said` gives it; the score of flm is its probability, whatever orders its lists.
      asked: prompts with these items as candidates, for the baselines.
    """
    own = _rows(ours.where(F.col(IS_HELD)))
    if models.packed is not None and models.baselines:
        own = own.union(_rows(lists(asked, models.packed, names=models.baselines, n=n)))
    return own


def listed(ours: DataFrame, prompts: DataFrame, models: Models, *, n: int) -> DataFrame:
    """As `answered`, by the models that have lists; the hybrid's are by its ranking stack.

    Those that are to be diverse have lists of `models.diverse.n` too, called by `diversity.diversified`.
    """
    names = [name for name in models.baselines if name in models.listing]
    found = _rows(ours.where(~F.col(IS_HELD)))
    if models.packed is not None and names:
        found = found.union(_rows(lists(prompts, models.packed, names=names, n=n)))
    chosen = [name for name in names if name in models.plain.values()]
    if models.diverse is not None and models.packed is not None and chosen:
        by_baselines = lists(prompts, models.packed, names=chosen, n=models.diverse.n, diverse=True)
        found = found.union(_rows(by_baselines.withColumn(MODEL, F.lit(diversified(chosen[0])))))
    return found


def _rows(said: DataFrame) -> DataFrame:
    columns = (MODEL, c.USER_ID, c.RANK, c.ITEM_ID, F.col(c.SCORE).cast("double").alias(c.SCORE))
    return said.select(*columns).where(F.col(c.RANK) >= 1)
