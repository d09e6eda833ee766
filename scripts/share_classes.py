"""What Spark does in every job, once and on a handful of rows: scripts/setup keeps the classes that it loads.

    spark-submit --driver-java-options -XX:ArchiveClassesAtExit=FILE scripts/share_classes.py

Java reads classes out of such an archive (class data sharing) in place of finding, parsing and verifying thousands of
them in jars at each start; `docs/benchmarks.md` says what that saves.
"""

from __future__ import annotations

import runpy
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from flmrec_spark.config import Config, load_config
from flmrec_spark.session import session
from flmrec_spark.stages.user_prompts import user_prompts
from flmrec_spark.tables import schemas
from flmrec_spark.tables.delta import Tables, run_predicate

PREPARE = Path(__file__).parent.parent / "jobs/prepare.py"

RATINGS = "user_id,item_id,rating,timestamp\n" + "".join(
    f"u{user},i{(user * 3 + item) % 10},{1 + (user + item) % 5},{1_600_000_000 + 86_400 * item}\n"
    for user in range(6)
    for item in range(8)
)
ITEMS = "item_id,title,genre\n" + "".join(f"i{item},title {item},g{item % 3}\n" for item in range(10))


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = write_config(folder)
        config = load_config(str(file), [])
        spark = session(config.tables, app_name="flmrec share classes")
        try:
            code = int(runpy.run_path(str(PREPARE))["main"](["--config", str(file)]))
            if code == 0:
                use(Tables(spark, config.tables), config)
        finally:
            spark.stop()
    return code


def write_config(folder: Path) -> Path:
    (folder / "ratings.csv").write_text(RATINGS)
    (folder / "items.csv").write_text(ITEMS)
    file = folder / "config.yaml"
    file.write_text(
        f"tables: {{root: '{folder}/tables', metastore: '{folder}/metastore'}}\n"
        f"prepare:\n"
        f"  interactions: {{path: '{folder}/ratings.csv', format: csv}}\n"
        f"  items: {{path: '{folder}/items.csv', format: csv}}\n"
        f"  liked_at_least: 4\n"
        f"model: {{path: none}}\n"
        f"checkpoint: none\n"
    )
    return file


def use(tables: Tables, config: Config) -> None:
    """Prompts of all users through Arrow and Python, their rows staged, published, counted and asked for by SQL."""
    prompts = user_prompts(
        tables.read("users"),
        tables.read("interactions"),
        splits=config.score.history_splits,
        history_length=5,
        exclude_seen=True,
    ).persist()
    lists = prompts.repartition(4).mapInArrow(one_row_each, "user_id string, rank int, item_id string, score double")
    further = {"run_id": F.lit("share-classes"), "probability": F.col("score"), "has_history": F.lit(True)}
    publish(tables, lists.withColumns(further))
    prompts.unpersist()


def one_row_each(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        n = batch.num_rows
        columns = {"rank": pa.array([1] * n, pa.int32()), "item_id": ["i0"] * n, "score": [0.5] * n}
        yield pa.RecordBatch.from_pydict({"user_id": batch["user_id"], **columns})


def publish(tables: Tables, rows: DataFrame) -> None:
    for _ in range(2):  # a table made, and replaced
        tables.replace(schemas.RECOMMENDATIONS, schemas.RECOMMENDATIONS.select(rows), {"job": "share classes"})
    published = tables.read("recommendations", version=tables.version("recommendations"))
    listed = published.where(run_predicate("share-classes")).join(tables.read("items"), on=["item_id"], how="left")
    listed.groupBy("user_id").agg(F.sort_array(F.collect_list("title")), F.count_distinct("item_id")).collect()
    tables.create_view("listed", f"SELECT * FROM {tables.reference('recommendations')}")
    tables.spark.sql("SELECT user_id, round(score, 3) FROM listed ORDER BY rank").toArrow()


if __name__ == "__main__":
    sys.exit(main())
