"""What every job starts with: arguments, config, session, tables and the record of the run.

A job is a function of a Job. `run` gives it one, turns every FlmrecError into one line on standard error and
its exit code (see `errors`), writes the run's row to the table `runs`, and ends with one JSON line on standard
output for schedulers.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from types import MappingProxyType

import pyspark
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructField, StructType

import flmrec_spark
from flmrec_spark import cli
from flmrec_spark.config import Config, load_config
from flmrec_spark.errors import EnvironmentFault, FlmrecError
from flmrec_spark.session import seconds_since_launch, session
from flmrec_spark.tables import schemas
from flmrec_spark.tables.delta import Tables, run_predicate
from flmrec_spark.tables.spark_errors import spark_message, worker_error

__all__ = ["Job", "run", "session"]

log = logging.getLogger("flmrec")

_NO_FILES: Mapping[str, str] = MappingProxyType({})


@dataclass
class Job:
    """One run of one job. `counts`, `seconds`, `inputs` and `versions` end in the table `runs`."""

    name: str
    config: Config
    spark: SparkSession
    tables: Tables
    run_id: str
    started_at: datetime
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    status: str = "done"
    files: Mapping[str, Path | None] = field(default_factory=dict)  # given by further arguments, see `run`
    redoes: bool = False  # a run of an id that is done does its work anew, so that its record is of the last time

    @contextmanager
    def timed(self, part: str, step: str | None = None) -> Iterator[None]:
        """Adds the wall time of the block to `seconds[part]` and names the step in Spark's UI and the log."""
        log.info("%s: %s", self.name, step or part)
        self.spark.sparkContext.setJobDescription(f"flmrec {self.name}: {step or part}")
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add_seconds(part, time.perf_counter() - started)

    def add_seconds(self, part: str, seconds: float) -> None:
        self.seconds[part] = round(self.seconds.get(part, 0.0) + seconds, 3)

    def read(self, name: str) -> DataFrame:
        """An input at the version that the run began with, which `inputs` has, whatever is written to it meanwhile."""
        return self.tables.read(name, version=int(self.inputs[name]))

    def is_recorded(self) -> bool:
        """Whether the table runs has this run as done."""
        if not self.run_id or not self.tables.exists("runs"):
            return False
        predicate = f"{run_predicate(self.run_id, job=self.name)} AND verdict = 'done'"
        return not self.tables.read("runs").where(predicate).isEmpty()

    @property
    def n_partitions(self) -> int:
        """Tasks of a stage whose cost nobody has planned: several per core, so that the last is not waited for long."""
        return self.config.score.partitions or 4 * self.spark.sparkContext.defaultParallelism

    def metadata(self) -> dict[str, object]:
        """What a commit of this run tells of itself."""
        return {"job": self.name, "run_id": self.run_id, "config": self.config.digest(), **self.inputs}


def run(
    name: str,
    body: Callable[[Job], None],
    argv: Sequence[str],
    description: str,
    *,
    dry_run: Callable[[Job], None] | None = None,
    files: Mapping[str, str] = _NO_FILES,
    ahead: Callable[[Config], None] | None = None,
) -> int:
    """Runs a job; returns its exit code. The session is stopped when this call started it.

    Args:
      dry_run: what --dry-run does instead of the body; it writes nothing, and neither does its record.
      files: further arguments `--<name> FILE` with their help; what was given is in the Job's `files`.
      ahead: what a thread may do while the session starts, such as imports; when it fails, the body will see to it.
    """
    arguments = _parse(name, argv, description, files, has_dry_run=dry_run is not None)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("py4j").setLevel(logging.WARNING)  # under spark-submit its farewell would be the last line
    started = time.perf_counter()
    spark = None
    owns_session = SparkSession.getActiveSession() is None
    try:
        config = load_config(arguments.config, arguments.overrides)
        if arguments.print_config:
            print(config.to_yaml(), end="")
            return 0
        if ahead is not None:
            Thread(target=_quietly, args=(ahead, config), daemon=True).start()
        spark = session(config.tables, app_name=f"flmrec {name}", uses_gpu=config.score.gpus_per_task > 0)
        if arguments.traceback:
            spark.sparkContext.setLogLevel("ERROR")
        spent = time.perf_counter() - started
        if owns_session:
            spent = max(spent, seconds_since_launch(spark))
        begun = datetime.now(UTC) - timedelta(seconds=spent)
        job = Job(name, config, spark, Tables(spark, config.tables), arguments.run_id or "", begun)
        job.files = {file: Path(value) if (value := getattr(arguments, file)) else None for file in files}
        job.add_seconds("start", spent)
        is_dry = dry_run is not None and arguments.dry_run
        return _attempt(job, dry_run if dry_run is not None and is_dry else body, is_dry=is_dry)
    except (PySparkException, Py4JJavaError) as fault:
        named = worker_error(fault) or EnvironmentFault(f"Spark: {spark_message(fault)}")
        named.__cause__ = fault
        return cli.failed(name, named, with_traceback=arguments.traceback)
    except Exception as fault:  # noqa: BLE001  the last frame of a job: a scheduler's log gets a line, not a trace
        return cli.failed(name, fault, with_traceback=arguments.traceback)
    finally:
        if spark is not None and owns_session:
            spark.stop()


def _quietly(ahead: Callable[[Config], None], config: Config) -> None:
    with suppress(Exception):
        ahead(config)


def _attempt(job: Job, body: Callable[[Job], None], *, is_dry: bool) -> int:
    try:
        body(job)
    except Exception as fault:
        try:
            if not is_dry and (job.redoes or not job.is_recorded()):  # what a run of this id has published stands
                _record(job, "failed", _message(fault))
        except (FlmrecError, PySparkException, Py4JJavaError) as second:
            log.warning("%s: the failure is not in the table runs: %s", job.name, _message(second))
        raise
    if job.status != "already done" and not is_dry:
        with job.timed("write", "record"):
            _record(job, "done", "")
        job.add_seconds("wall", (datetime.now(UTC) - job.started_at).total_seconds())
    told = {"job": job.name, "status": job.status, "run_id": job.run_id, **job.versions, **job.counts}
    summary = {**told, "seconds": job.seconds}
    print(json.dumps(summary), flush=True)
    return 0


def _message(fault: Exception) -> str:
    """The error for the table runs; an unexpected one by its type alone, as its text may hold ids."""
    if isinstance(fault, PySparkException | Py4JJavaError):
        return f"Spark: {spark_message(fault)}"
    return str(fault) if isinstance(fault, FlmrecError) else f"unexpected {type(fault).__name__}"


def _record(job: Job, verdict: str, message: str) -> None:
    if not job.run_id:
        return
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
            **job.versions,
        },
        "config": job.config.to_yaml(),
    }
    schema = StructType([StructField(col.name, col.type) for col in schemas.RUNS.columns])
    frame = job.spark.createDataFrame([row], schema)
    predicate = run_predicate(job.run_id, job=job.name)
    job.tables.replace_rows(schemas.RUNS, frame, predicate, {"job": job.name, "run_id": job.run_id})


def _parse(
    name: str, argv: Sequence[str], description: str, files: Mapping[str, str], *, has_dry_run: bool
) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"{name}.py", description=description)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML, see conf/demo.yaml")
    parser.add_argument(
        "--run-id",
        metavar="ID",
        help="name of this run; by default made from what it depends on; prepare: its settings",
    )
    parser.add_argument("--print-config", action="store_true", help="print the effective config and stop")
    if has_dry_run:
        parser.add_argument("--dry-run", action="store_true", help="say what the run would cost and write nothing")
    parser.add_argument("--traceback", action="store_true", help="show the stack trace of an error")
    for file, told in files.items():
        parser.add_argument(f"--{file}", metavar="FILE", help=told)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings over those of the file")
    return parser.parse_intermixed_args(argv)
