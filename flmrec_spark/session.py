"""The Spark session of a job: the cluster's settings as they are, and what a local run needs where they are silent."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from pathlib import Path

from py4j.protocol import Py4JJavaError
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkException
from pyspark.logger import PySparkLogger
from pyspark.sql import SparkSession

from flmrec_spark.config import TablesConfig
from flmrec_spark.errors import EnvironmentFault
from flmrec_spark.tables.spark_errors import spark_message

_EXTENSION = "io.delta.sql.DeltaSparkSessionExtension"
_CATALOG = "org.apache.spark.sql.delta.catalog.DeltaCatalog"
# PySpark logs an exception's stack trace and SQL here, before raising it; the exception itself is enough.
_LOUD = ("SQLQueryContextLogger", "DataFrameQueryContextLogger")
# Only where nobody says otherwise, on a cluster too: times without a zone, and sources as people bring them.
_READING = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.legacy.parquet.nanosAsLong": "true",  # how pandas writes times; else the whole file is refused
    "spark.sql.legacy.javaCharsets": "true",  # for options.encoding: GBK and the like
    "spark.sql.sources.partitionColumnTypeInference.enabled": "false",  # an id such as 007 in a folder's name is text
}
# For a local master only, and only where neither spark-submit nor spark-defaults.conf says otherwise: a cluster's
# defaults are made for thousands of files and cost seconds per small table.
_LOCAL = {
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.sql.shuffle.partitions": "4",
    "spark.log.level": "FATAL",  # an error is one line of ours; Spark logs a failed task as ten stack traces
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.python.factory.idleWorkerMaxPoolSize": str(os.cpu_count() or 1),
}


def session(tables: TablesConfig, *, app_name: str, uses_gpu: bool = False) -> SparkSession:
    """The session of a job: what spark-submit and spark-defaults.conf say, and Delta where they are silent.

    Args:
      uses_gpu: idle Python workers take turns, each with a model of its own, so one is kept where they use a GPU.

    Raises:
      EnvironmentFault: no Java, no Delta jars, Delta shut out by the settings, or a locked embedded catalog.
    """
    active = SparkSession.getActiveSession()
    if active is not None:  # a notebook's, or a platform's
        given = active.conf.getAll
        for key, value in _READING.items():
            if key not in given:
                active.conf.set(key, value)
        return active
    if "PYSPARK_GATEWAY_PORT" not in os.environ and not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        raise EnvironmentFault("Java: found none, expected 17 or newer on the PATH or in JAVA_HOME")
    for name in _LOUD:
        PySparkLogger.getLogger(name).setLevel(logging.CRITICAL + 1)
    # Only a conf made after the JVM knows what spark-submit and spark-defaults.conf say.
    try:
        SparkContext._ensure_initialized()
    except PySparkException as fault:
        place = f"JAVA_HOME {os.environ['JAVA_HOME']}" if os.environ.get("JAVA_HOME") else "the PATH"
        raise EnvironmentFault(f"Java: the one in {place} does not start Spark, expected 17 or newer") from fault
    conf = SparkConf()
    conf.setIfMissing("spark.master", "local[*]")
    if conf.get("spark.app.name", "") in ("", "pyspark-shell", Path(sys.argv[0]).name):
        conf.set("spark.app.name", app_name)
    conf.setIfMissing("spark.sql.extensions", _EXTENSION)
    conf.setIfMissing("spark.sql.catalog.spark_catalog", _CATALOG)
    for key, value in _READING.items():
        conf.setIfMissing(key, value)
    if uses_gpu:
        conf.setIfMissing("spark.python.factory.idleWorkerMaxPoolSize", "1")
    if str(conf.get("spark.master")).startswith("local"):
        for key, value in _LOCAL.items():
            conf.setIfMissing(key, value)
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # not the first python3 on the PATH
        if "PYSPARK_GATEWAY_PORT" not in os.environ:  # plain python: to spark-submit a shell, which gets the bars
            conf.set("spark.ui.showConsoleProgress", "false")
        if tables.metastore is not None and not conf.contains("spark.sql.catalogImplementation"):
            _embedded_catalog(conf, Path(tables.metastore).absolute())
    context = SparkContext.getOrCreate(conf)
    _expect_delta(context, str(conf.get("spark.sql.extensions")))
    spark = SparkSession.builder.config(conf=conf).getOrCreate()
    _expect_catalog(spark, tables)
    return spark


def seconds_since_launch(spark: SparkSession) -> float:
    """Age of the driver's JVM process: spark-submit's own, which turns into the JVM and then starts Python."""
    jvm = spark.sparkContext._jvm
    assert jvm is not None
    started = jvm.java.lang.ProcessHandle.current().info().startInstant()
    return max(0.0, time.time() - int(started.get().toEpochMilli()) / 1000.0) if started.isPresent() else 0.0


def catalog_settings(folder: Path) -> dict[str, str]:
    """Spark's settings of the embedded catalog in a folder, whose warehouse is beside it."""
    return {
        "spark.sql.catalogImplementation": "hive",
        "spark.hadoop.javax.jdo.option.ConnectionURL": f"jdbc:derby:;databaseName={folder.absolute()};create=true",
        "spark.sql.warehouse.dir": str(folder.absolute().parent / "warehouse"),
        "spark.hadoop.datanucleus.schema.autoCreateAll": "true",
    }


def _embedded_catalog(conf: SparkConf, folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise EnvironmentFault(f"catalog: {folder}: {fault.strerror}, expected a place for tables.metastore") from None
    for key, value in catalog_settings(folder).items():
        conf.setIfMissing(key, value)


def _expect_delta(context: SparkContext, extensions: str) -> None:
    if _EXTENSION not in extensions:
        raise EnvironmentFault(f"spark.sql.extensions: got {extensions}, expected {_EXTENSION} among them")
    jvm = context._jvm
    assert jvm is not None
    jvm.java.lang.System.setProperty("derby.stream.error.file", os.devnull)
    try:
        jvm.java.lang.Thread.currentThread().getContextClassLoader().loadClass(_EXTENSION)
    except Py4JJavaError:
        raise EnvironmentFault(
            "Delta jars: not found, expected delta-spark and delta-storage in Spark's jars folder; "
            "scripts/setup puts them there, a cluster gets them from its own settings or --packages"
        ) from None


def _expect_catalog(spark: SparkSession, tables: TablesConfig) -> None:
    try:
        spark.sql("SHOW DATABASES").collect()
    except (PySparkException, Py4JJavaError) as fault:
        causes = _causes(fault)
        if any("Another instance of Derby" in cause for cause in causes):
            raise EnvironmentFault(
                f"catalog: {tables.metastore} is held by another process; the embedded catalog serves one at a time"
            ) from None
        raise EnvironmentFault(f"catalog: {tables.metastore or 'of the cluster'}: {causes[-1]}") from None


def _causes(fault: PySparkException | Py4JJavaError) -> list[str]:
    """What the JVM tells of a failure, from the outermost to the root; Hive's own words are the same for all."""
    cause = fault.java_exception if isinstance(fault, Py4JJavaError) else getattr(fault, "_origin", None)
    told = [spark_message(fault)]
    while cause is not None:
        told.append(str(cause.getMessage() or cause.toString()))
        cause = cause.getCause()
    return told
