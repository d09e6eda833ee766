"""Spark's settings for worlds of some dozen rows, of the tests' own session and of those in processes of their own."""

from __future__ import annotations

import sys
from pathlib import Path

# Such worlds need no more partitions than these, and every one costs time; so does Java that Spark writes and compiles
# for each query, and plans that are made anew after each stage: here it interprets the plans as they are.
LIGHT = {
    "spark.sql.shuffle.partitions": "2",
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.adaptive.enabled": "false",
}


# The tests' own session lives as long as they run, and fills the gigabyte that is Spark's default.
LONG = {"spark.driver.memory": "2g", "spark.driver.extraJavaOptions": "-XX:+UseSerialGC"}


def flags(settings: dict[str, str]) -> list[str]:
    """As spark-submit takes them."""
    return [flag for key, value in settings.items() for flag in ("--conf", f"{key}={value}")]


def of_executors() -> dict[str, str]:
    """Spark's classes out of the archive of scripts/environment.sh, which executors are not told of by themselves."""
    archive = Path(sys.prefix) / "spark.jsa"
    options = f"-XX:SharedArchiveFile={archive} -Xlog:cds=off -Xlog:cds+dynamic=off"
    return {"spark.executor.extraJavaOptions": options} if archive.exists() else {}
