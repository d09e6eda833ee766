"""The model as a function of SQL."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from pyspark.sql import SparkSession
from pyspark.sql.pandas.functions import pandas_udf

from flmrec_spark.stages.scores import Shipped


def register(spark: SparkSession, shipped: Shipped, *, name: str = "flmrec_score") -> None:
    """Registers `flmrec_score(user_text, item_text)`: the calibrated probability, without bias terms, as SQL.

    Null where a text is null, or where the item's text exceeds the token budget; the end of a long user text is
    cut, where the oldest history stands.
    """

    bundle = shipped.bundle

    def flmrec_score(batches: Iterator[tuple[pd.Series, pd.Series]]) -> Iterator[pd.Series]:
        from flmrec_spark.lm.texts import score_texts

        worker = bundle.worker()
        for user_texts, item_texts in batches:
            values = score_texts(worker.scorer, worker.segmenter, user_texts.to_list(), item_texts.to_list())
            yield pd.Series(values, dtype="float64")

    spark.udf.register(name, pandas_udf(flmrec_score, "double"))  # type: ignore[call-overload]
