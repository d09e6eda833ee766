"""What a scheduler sees of a job: exit code, one line on standard error, one on standard output, a row in runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from flmrec_spark import session as sessions
from flmrec_spark.config import TablesConfig, load_config
from flmrec_spark.errors import AuditError, CheckpointError, EnvironmentFault
from flmrec_spark.job import Job, run
from flmrec_spark.session import session
from flmrec_spark.tables.delta import Tables

ROOT = Path(__file__).parent.parent
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def config(tmp_path: Path, tables_config: TablesConfig) -> str:
    values = {
        "tables": tables_config.model_dump(),
        "prepare": {"interactions": {"path": "i.csv", "format": "csv"}},
        "model": {"path": "m"},
        "checkpoint": "c",
    }
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(file)


def launch(body: Callable[[Job], None], *argv: str) -> int:
    return run("score", body, argv, "A job of the tests.")


def never(job: Job) -> None:
    pytest.fail("the body ran")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--config", "none.yaml"), "flmrec score: ConfigError: --config: got none.yaml, expected a YAML file"),
        (("--config", "{config}", "score.m=3"), "score.m: unknown key"),
        (
            ("--config", "{config}", "score.n=0", "scor.n=1"),
            "score.n: got 0, expected greater than or equal to 1; scor:",
        ),
    ],
)
def test_a_wrong_config_is_one_line_and_exit_code_2(config: str, capsys: Capture, argv: list[str], told: str) -> None:
    assert launch(never, *[word.format(config=config) for word in argv]) == 2
    caught = capsys.readouterr()
    assert told in caught.err
    assert caught.err.count("\n") == 1
    assert caught.out == ""


def test_a_wrong_flag_is_exit_code_2(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        launch(never, "--confg", "x")
    assert caught.value.code == 2
    assert "score.py: error:" in capsys.readouterr().err


def test_print_config_prints_the_effective_config_and_stops(config: str, tmp_path: Path, capsys: Capture) -> None:
    assert launch(never, "--config", config, "score.n=7", "--print-config") == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load_config(printed) == load_config(config, ["score.n=7"])


def test_a_run_that_is_done_leaves_its_row_and_one_json_line(
    spark: SparkSession, tables: Tables, config: str, capsys: Capture
) -> None:
    def body(job: Job) -> None:
        with job.timed("part"):
            job.counts["rows"] = 3
        job.inputs["items"] = "4"

    assert launch(body, "--config", config, "--run-id", "it's 1", "score.n=7") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["job"], told["status"], told["run_id"], told["rows"]) == ("score", "done", "it's 1", 3)
    assert set(told["seconds"]) == {"start", "part", "write", "wall"}
    (row,) = tables.read("runs").collect()
    assert (row["run_id"], row["job"], row["verdict"], row["message"]) == ("it's 1", "score", "done", None)
    assert (row["counts"], row["inputs"]) == ({"rows": 3}, {"items": "4"})
    assert yaml.safe_load(row["config"])["score"]["n"] == 7
    assert row["started_at"] <= row["finished_at"]

    assert launch(body, "--config", config, "--run-id", "it's 1") == 0  # again: its row is replaced
    assert tables.read("runs").count() == 1

    def already_done(job: Job) -> None:
        job.status = "already done"

    version = tables.version("runs")
    assert launch(already_done, "--config", config, "--run-id", "it's 1") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["status"] == "already done"
    assert tables.version("runs") == version


def test_a_run_that_fails_is_one_line_its_exit_code_and_a_row(
    spark: SparkSession, tables: Tables, config: str, capsys: Capture
) -> None:
    def body(job: Job) -> None:
        raise AuditError("lists: got 3 users of 4,\nexpected all")

    assert launch(body, "--config", config, "--run-id", "1") == 6
    caught = capsys.readouterr()
    assert caught.err == "flmrec score: AuditError: lists: got 3 users of 4, expected all\n"
    assert caught.out == ""
    (row,) = tables.read("runs").collect()
    assert (row["verdict"], row["message"]) == ("failed", "lists: got 3 users of 4,\nexpected all")

    assert launch(body, "--config", config, "--traceback") == 6
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_unexpected_error_is_one_line_without_its_data(
    spark: SparkSession, tables: Tables, config: str, capsys: Capture
) -> None:
    def body(job: Job) -> None:
        raise KeyError("user 196")

    assert launch(body, "--config", config, "--run-id", "1") == 1
    told = capsys.readouterr().err
    assert told.startswith("flmrec score: unexpected KeyError at test_job.py:")
    assert told.count("\n") == 1
    assert "196" not in told
    assert tables.read("runs").collect()[0]["message"] == "unexpected KeyError"

    assert launch(body, "--config", config, "--traceback") == 1
    assert "KeyError: 'user 196'" in capsys.readouterr().err


def test_an_error_of_spark_is_one_line_and_exit_code_5(
    spark: SparkSession, tables: Tables, config: str, capsys: Capture
) -> None:
    def missing(job: Job) -> None:
        job.spark.table("no_such_table")

    def ours(job: Job) -> None:
        def damaged(batches):  # type: ignore[no-untyped-def]
            raise CheckpointError("checkpoint: damaged")
            yield from batches

        job.spark.range(1).mapInPandas(damaged, "id long").collect()

    def divided(job: Job) -> None:
        job.spark.range(1).select(F.lit(1) / F.col("id")).collect()

    for body, code, told in (
        (missing, 5, "flmrec score: EnvironmentFault: Spark: [TABLE_OR_VIEW_NOT_FOUND]"),
        (ours, 4, "flmrec score: CheckpointError: checkpoint: damaged"),
        (divided, 5, "flmrec score: EnvironmentFault: Spark: [DIVIDE_BY_ZERO]"),
    ):
        assert launch(body, "--config", config, "--run-id", "1") == code
        caught = capsys.readouterr()
        assert caught.err.startswith(told)
        assert caught.err.count("\n") == 1


def test_a_failure_that_cannot_be_recorded_is_still_told(
    spark: SparkSession, tables: Tables, config: str, capsys: Capture
) -> None:
    spark.range(1).write.format("delta").save(tables.place("runs"))

    def body(job: Job) -> None:
        raise AuditError("lists: wrong")

    assert launch(body, "--config", config, "--run-id", "1") == 6
    assert "flmrec score: AuditError: lists: wrong\n" in capsys.readouterr().err


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs code in a process of its own, away from the session of the tests."""

    def start(code: str, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "outside.py"
        script.write_text(code, encoding="utf-8")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        every = {**os.environ, "PATH": path, **environment}
        return subprocess.run(
            [*(command or (sys.executable,)), str(script)], cwd=tmp_path, env=every, capture_output=True, text=True
        )

    yield start


RUN = """
import sys
from flmrec_spark.job import run
def body(job):
    raise AssertionError
sys.exit(run("score", body, ["--config", "c.yaml"], ""))
"""


def test_without_java_the_job_says_so(config: str, outside: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = outside(RUN, JAVA_HOME="/nonexistent")
    assert done.returncode == 5
    assert "flmrec score: EnvironmentFault: Java" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


SHOW = """
import json, sys
from flmrec_spark.config import TablesConfig
from flmrec_spark.errors import FlmrecError
from flmrec_spark.session import session
tables = TablesConfig(root=None, metastore="catalog/metastore")
spark = session(tables, app_name="flmrec test")
conf = dict(spark.sparkContext.getConf().getAll())
print(json.dumps({**conf, "python": spark.sparkContext.pythonExec}))
spark.stop()
"""


def test_what_spark_submit_says_is_not_overridden(outside: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    settings = {
        "spark.master": "local[1]",
        "spark.app.name": "given",
        "spark.sql.shuffle.partitions": "7",
        "spark.ui.enabled": "true",
        "spark.sql.catalogImplementation": "in-memory",
    }
    flags = [word for key, value in settings.items() for word in ("--conf", f"{key}={value}")]
    done = outside(SHOW, "spark-submit", *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {key: found[key] for key in settings} == settings
    assert found["spark.sql.extensions"] == "io.delta.sql.DeltaSparkSessionExtension"
    assert found["spark.databricks.delta.snapshotPartitions"] == "2"


def test_a_catalog_that_another_process_holds_is_named(
    spark: SparkSession, outside: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    url = spark.sparkContext.getConf().get("spark.hadoop.javax.jdo.option.ConnectionURL") or ""
    held = url.partition("databaseName=")[2].partition(";")[0]
    (Path(held).parent / "other").mkdir(exist_ok=True)
    done = outside(RUN_HELD.format(held=held))
    assert done.returncode == 5, done.stderr
    assert f"EnvironmentFault: catalog: {held} is held by another process" in done.stderr.splitlines()[-1]
    assert "\tat " not in done.stderr


def test_a_catalog_that_cannot_be_made_is_not_said_to_be_held(
    outside: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    done = outside(RUN_HELD.format(held=str(tmp_path / "file" / "metastore")))
    assert done.returncode == 5, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "EnvironmentFault: catalog: " in last and "held by another" not in last
    assert f"{tmp_path}/file/metastore" in last


RUN_HELD = """
import sys
from flmrec_spark.config import TablesConfig
from flmrec_spark.errors import FlmrecError
from flmrec_spark.session import session
try:
    session(TablesConfig(root=None, metastore={held!r}), app_name="second")
except FlmrecError as fault:
    print(f"{{type(fault).__name__}}: {{fault}}", file=sys.stderr)
    sys.exit(fault.exit_code)
"""


def test_a_running_session_is_taken_as_it_is(spark: SparkSession) -> None:
    assert session(TablesConfig(root=None), app_name="other") is spark


def test_a_running_session_reads_as_jobs_do_where_nobody_said_otherwise(spark: SparkSession) -> None:
    zone, charsets = "spark.sql.session.timeZone", "spark.sql.legacy.javaCharsets"
    before = {name: spark.conf.get(name) for name in (zone, charsets)}
    try:
        spark.conf.set(zone, "Asia/Shanghai")
        spark.conf.unset(charsets)
        session(TablesConfig(root=None), app_name="other")
        assert (spark.conf.get(zone), spark.conf.get(charsets)) == ("Asia/Shanghai", "true")
    finally:
        for name, value in before.items():
            spark.conf.set(name, value)


def test_settings_without_delta_are_refused(spark: SparkSession) -> None:
    with pytest.raises(EnvironmentFault, match=r"spark\.sql\.extensions: got other\.Extension, expected io\.delta"):
        sessions._expect_delta(spark.sparkContext, "other.Extension")


def test_spark_defaults_conf_and_the_jobs_agree() -> None:
    lines = (ROOT / "conf/spark-defaults.conf").read_text(encoding="utf-8").splitlines()
    found = dict(line.split(None, 1) for line in lines if line and not line.startswith("#"))
    local = dict(sessions._LOCAL)
    del local["spark.python.factory.idleWorkerMaxPoolSize"]  # the number of cores: no file knows it
    assert {key: found.get(key) for key in local} == local
    assert found["spark.sql.extensions"] == sessions._EXTENSION
    assert found["spark.sql.catalog.spark_catalog"] == sessions._CATALOG
    for config in ("demo", "movielens"):
        metastore = load_config(ROOT / f"conf/{config}.yaml").tables.metastore
        url = found["spark.hadoop.javax.jdo.option.ConnectionURL"]
        assert url == f"jdbc:derby:;databaseName={metastore};create=true"
