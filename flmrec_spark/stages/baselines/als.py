"""Matrix factorisation of likes by Spark ML's ALS, for implicit feedback (Hu, Koren and Volinsky, ICDM'08).

Every like is a yes of confidence 1 + 1; everything else, disliked or unknown, is a weak no of confidence 1. So the
lists follow what users go on to like, which predicted ratings do not. Spark fits the item factors; a user's factors are
solved from their likes when they are scored, which gives Spark's own for a user of the fit, and serves later users:

    (Y'Y + sum over likes y y' + 0.1 |likes| I) x = 2 sum over likes y

An item that nobody liked has the factors 0, and so the score 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import SparkSession

from flmrec_spark.stages.baselines.world import Floats, User, World

# Every iteration makes the lineage longer, which a task reads by recursion: from ten on, a thread's stack may overflow.
RANK, ITERATIONS, REGULARISATION, CONFIDENCE, SEED = 32, 5, 0.1, 1.0, 1
# Spark adds what blocks say in the order in which they end: of three or more the last bits depend on that.
_ROWS_PER_BLOCK = 1_000_000


@dataclass(frozen=True)
class Als:
    factors: npt.NDArray[np.float32]  # Y, (N, RANK)
    gram: Floats  # Y'Y, (RANK, RANK)
    regularisation: float = REGULARISATION
    confidence: float = CONFIDENCE
    is_probability: ClassVar[bool] = False

    def scores(self, user: User) -> Floats | None:
        liked = user.liked_items
        return self.factors @ self.user_factors(user) if len(liked) else None

    def user_factors(self, user: User) -> Floats:
        """x, (RANK,), for a user with at least one like."""
        own = self.factors[user.liked_items].astype(np.float64)
        ridge = self.regularisation * len(own) * np.eye(own.shape[1])
        left = self.gram + self.confidence * own.T @ own + ridge
        return np.asarray(np.linalg.solve(left, (1.0 + self.confidence) * own.sum(axis=0)))


def als(
    world: World,
    spark: SparkSession,
    *,
    rank: int = RANK,
    iterations: int = ITERATIONS,
    regularisation: float = REGULARISATION,
    confidence: float = CONFIDENCE,
) -> Als:
    from pyspark.ml.recommendation import ALS  # here: seconds to import, and not every run fits one

    likes = world.likes.tocoo()
    factors = np.zeros((len(world.item_ids), rank), dtype=np.float32)
    if likes.nnz:
        table = pa.table(
            {
                "user": likes.row.astype(np.int32),
                "item": likes.col.astype(np.int32),
                "rating": likes.data.astype(np.float32),
            }
        )
        # In one partition, so that the same likes give the same factors on any number of cores.
        frame = spark.createDataFrame(table).coalesce(1)
        blocks = min(10, 1 + likes.nnz // _ROWS_PER_BLOCK)
        fitted = ALS(
            rank=rank,
            maxIter=iterations,
            regParam=regularisation,
            alpha=confidence,
            implicitPrefs=True,
            seed=SEED,
            userCol="user",
            itemCol="item",
            ratingCol="rating",
            numUserBlocks=blocks,
            numItemBlocks=blocks,
        ).fit(frame)
        found = fitted.itemFactors.toPandas()
        factors[found["id"].to_numpy()] = np.stack(found["features"].to_list()).astype(np.float32)
    exact = factors.astype(np.float64)
    return Als(factors, exact.T @ exact, regularisation, confidence)
