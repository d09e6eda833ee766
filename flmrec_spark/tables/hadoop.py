"""Places as Hadoop sees them, whatever file system they are on."""

from __future__ import annotations

from typing import Any

from pyspark.sql import SparkSession


def opened(spark: SparkSession, place: str) -> tuple[Any, Any]:
    """The file system of a place, and its path, which may be a pattern; both of Java."""
    context: Any = spark.sparkContext
    path = context._jvm.org.apache.hadoop.fs.Path(place)
    return path.getFileSystem(context._jsc.hadoopConfiguration()), path


def qualified(spark: SparkSession, place: str) -> str:
    """Written whole: with hdfs://host:8020 as the default, /lake and hdfs:///lake are both hdfs://host:8020/lake."""
    system, path = opened(spark, place)
    return str(system.makeQualified(path).toString())
