"""What every job starts with: arguments, config, session, tables and the record of the run.

A job is a function of a Job. `run` gives it one, turns every FlmrecError into one line on standard error and
its exit code (see `errors`), writes the run's row to the table `runs`, and ends with one JSON line on standard
output for schedulers.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pyspark
from py4j.protocol import Py4JJavaError
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql.types import StructField, StructType

import flmrec_spark
from flmrec_spark.config import Config, TablesConfig, load_config
from flmrec_spark.errors import EnvironmentFault, FlmrecError
from flmrec_spark.tables import schemas
from flmrec_spark.tables.delta import Tables, run_predicate

log = logging.getLogger("flmrec")

_EXTENSION = "io.delta.sql.DeltaSparkSessionExtension"
_CATALOG = "org.apache.spark.sql.delta.catalog.DeltaCatalog"
# For a local master only, and only where neither spark-submit nor spark-defaults.conf says otherwise: a cluster's
# defaults are made for thousands of files and cost seconds per small table.
_LOCAL = {
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.sql.shuffle.partitions": "4",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.python.factory.idleWorkerMaxPoolSize": str(os.cpu_count() or 1),
}


@dataclass
class Job:
    """One run of one job. `counts`, `seconds` and `inputs` end in the table `runs`."""

    name: str
    config: Config
    spark: SparkSession
    tables: Tables
    run_id: str
    started_at: datetime
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    status: str = "done"

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the wall time of the block to `seconds[part]` and names the part in Spark's UI and the log."""
        log.info("%s: %s", self.name, part)
        self.spark.sparkContext.setJobDescription(f"flmrec {self.name}: {part}")
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = round(self.seconds.get(part, 0.0) + time.perf_counter() - started, 3)

    def metadata(self) -> dict[str, object]:
        """What a commit of this run tells of itself."""
        return {"job": self.name, "run_id": self.run_id, "config": self.config.digest(), **self.inputs}


def run(name: str, body: Callable[[Job], None], argv: Sequence[str], description: str) -> int:
    """Runs a job; returns its exit code. The session is stopped when this call started it."""
    arguments = _parse(name, argv, description)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    started = time.perf_counter()
    spark = None
    owns_session = SparkSession.getActiveSession() is None
    try:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.print_config:
            print(config.to_yaml(), end="")
            return 0
        spark = session(config.tables, app_name=f"flmrec {name}")
        now = datetime.now(UTC)
        job = Job(name, config, spark, Tables(spark, config.tables), arguments.run_id or "", now)
        job.seconds["start"] = round(time.perf_counter() - started, 3)
        return _attempt(job, body)
    except FlmrecError as fault:
        return _fail(name, fault, arguments.traceback)
    except (PySparkException, Py4JJavaError) as fault:
        return _fail(name, EnvironmentFault(f"Spark: {spark_message(fault)}"), arguments.traceback)
    finally:
        if spark is not None and owns_session:
            spark.stop()


def _attempt(job: Job, body: Callable[[Job], None]) -> int:
    verdict, message = "failed", "unexpected error"
    try:
        body(job)
        verdict, message = "done", ""
    except FlmrecError as fault:
        message = str(fault)
        raise
    finally:
        if job.run_id and job.status != "already done":
            _record(job, verdict, message)
    summary = {"job": job.name, "status": job.status, "run_id": job.run_id, **job.counts, "seconds": job.seconds}
    print(json.dumps(summary), flush=True)
    return 0


def _record(job: Job, verdict: str, message: str) -> None:
    row = {
        "run_id": job.run_id,
        "job": job.name,
        "verdict": verdict,
        "message": message or None,
        "started_at": job.started_at,
        "finished_at": datetime.now(UTC),
        "counts": job.counts,
        "seconds": job.seconds,
        "inputs": job.inputs,
        "versions": {
            "flmrec": flmrec_spark.__version__,
            "python": platform.python_version(),
            "pyspark": pyspark.__version__,
        },
        "config": job.config.to_yaml(),
    }
    schema = StructType([StructField(col.name, col.type) for col in schemas.RUNS.columns])
    frame = job.spark.createDataFrame([row], schema)
    predicate = f"{run_predicate(job.run_id)} AND job = '{job.name}'"
    job.tables.replace_rows(schemas.RUNS, frame, predicate, {"job": job.name, "run_id": job.run_id})


def _fail(name: str, fault: FlmrecError, with_traceback: bool) -> int:
    if with_traceback:
        traceback.print_exception(fault)
    print(f"flmrec {name}: {type(fault).__name__}: {' '.join(str(fault).split())}", file=sys.stderr, flush=True)
    return fault.exit_code


def _parse(name: str, argv: Sequence[str], description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"{name}.py", description=description)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML, see conf/demo.yaml")
    parser.add_argument("--run-id", metavar="ID", help="name of this run; by default made from its inputs and config")
    parser.add_argument("--print-config", action="store_true", help="print the effective config and stop")
    parser.add_argument("--traceback", action="store_true", help="show the stack trace of an error")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings over those of the file")
    return parser.parse_intermixed_args(argv)


def session(tables: TablesConfig, *, app_name: str) -> SparkSession:
    """The session of a job: what spark-submit and spark-defaults.conf say, and Delta where they are silent.

    Raises:
      EnvironmentFault: no Java, no Delta jars, Delta shut out by the settings, or a locked embedded catalog.
    """
    active = SparkSession.getActiveSession()
    if active is not None:
        return active
    if "PYSPARK_GATEWAY_PORT" not in os.environ and not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        raise EnvironmentFault("Java: found none, expected 17 or newer on the PATH or in JAVA_HOME")
    conf = SparkConf()
    conf.setIfMissing("spark.master", "local[*]")
    conf.setIfMissing("spark.app.name", app_name)
    conf.setIfMissing("spark.sql.extensions", _EXTENSION)
    conf.setIfMissing("spark.sql.catalog.spark_catalog", _CATALOG)
    if str(conf.get("spark.master")).startswith("local"):
        for key, value in _LOCAL.items():
            conf.setIfMissing(key, value)
        if tables.metastore is not None and not conf.contains("spark.sql.catalogImplementation"):
            _embedded_catalog(conf, Path(tables.metastore).absolute())
    context = SparkContext.getOrCreate(conf)
    context.setLogLevel("ERROR")
    _expect_delta(context, str(conf.get("spark.sql.extensions")))
    spark = SparkSession.builder.config(conf=conf).getOrCreate()
    spark.conf.set("spark.sql.session.timeZone", "UTC")
    _expect_catalog(spark, tables)
    return spark


def _embedded_catalog(conf: SparkConf, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    url = f"jdbc:derby:;databaseName={folder};create=true"
    conf.set("spark.sql.catalogImplementation", "hive")
    conf.setIfMissing("spark.hadoop.javax.jdo.option.ConnectionURL", url)
    conf.setIfMissing("spark.sql.warehouse.dir", str(folder.parent / "warehouse"))
    conf.setIfMissing("spark.hadoop.datanucleus.schema.autoCreateAll", "true")


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
        if "Another instance of Derby" in str(fault) or "XSDB6" in str(fault) or "HiveMetaStoreClient" in str(fault):
            raise EnvironmentFault(
                f"catalog: {tables.metastore} is held by another process; the embedded catalog serves one at a time"
            ) from None
        raise EnvironmentFault(f"catalog: {spark_message(fault)}") from None


def spark_message(fault: Exception) -> str:
    """The one line of a Spark error that says what went wrong."""
    lines = [line.strip() for line in str(fault).splitlines() if line.strip() and not line.strip().startswith("at ")]
    causes = [line for line in lines if line.startswith("Caused by")]
    return (causes[-1] if causes else lines[0] if lines else type(fault).__name__)[:600]
