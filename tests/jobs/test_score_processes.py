"""jobs/score.py by spark-submit: killed while it scores, and on executors of their own, with and without a GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyspark
import pytest

from tests.light import LIGHT, flags, of_executors
from tests.score_world import rows, rows_of_first, run

ROOT = Path(__file__).parents[2]
# One JVM after the other: none needs a catalog that outlives it.
SMALL = {**LIGHT, "spark.sql.catalogImplementation": "in-memory"}

Submit = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def submit(tmp_path: Path) -> Iterator[Submit]:
    """spark-submit, light, in a process group of its own, with the project's environment; ended with the test."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    home = tmp_path / "spark"  # a local cluster works below its Spark's home
    home.mkdir()
    for part in Path(pyspark.__file__).parent.iterdir():
        (home / part.name).symlink_to(part)
    environment = {**os.environ, "PATH": path, "SPARK_HOME": str(home)}
    environment.pop("PYSPARK_SUBMIT_ARGS", None)
    started = []

    def start(*command: str, **more: str) -> subprocess.Popen[str]:
        # Spark joins the two streams of a Python driver in its own standard output.
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(
            ["spark-submit", *flags(SMALL), *command],
            cwd=tmp_path,
            env={**environment, **more},
            start_new_session=True,
            **pipes,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_driver_killed_while_it_scores_ends_in_the_table_of_an_unbroken_run(
    world: Path, published: Path, submit: Submit, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--run-id", "first", "score.partitions=16")
    process = submit(str(ROOT / "jobs/score.py"), "--config", str(world / "config.yaml"), *asked)
    while not list((world / "tables").glob("top_n/*/*.parquet")):  # the first tasks are done, others are to come
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.05)
            pytest.fail(f"ended before it could be killed: {process.communicate()}")
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list((world / "tables").glob("top_n/_delta_log/*.json"))
    assert not (world / "tables/recommendations").exists()
    assert run(world, *asked) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["status"] == "done"
    for name in ("recommendations", "top_n", "rejects"):
        assert rows_of_first(world, name) == rows_of_first(published, name)


DRIVER = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from flmrec_spark.config import load_config
from flmrec_spark.session import session
from jobs import score
spark = session(load_config(sys.argv[2]).tables, app_name="flmrec test")
def run(name, *settings):
    return score.main(["--config", sys.argv[2], "--run-id", name, "score.partitions=6", *settings])
codes = [run("first", "score.gpus_per_task=1")]
bundles = [str(folder.parent.parent) for folder in Path(sys.argv[3]).glob("**/flmrec/*/items.arrow")]
Path(sys.argv[4]).touch()
codes += [run("no cuda", "score.gpus_per_task=1"), run("on cores")]
print(json.dumps({"codes": codes, "bundles": bundles}))
spark.stop()
"""
PATCH = """
import os, sys
if "pyspark.daemon" in sys.orig_argv:  # until the file is there, a GPU is a CPU: it is counted who loads a model for it
    from flmrec_spark.lm import worker
    device_of = worker.device_of
    worker.device_of = lambda *given: device_of(*given) if os.path.exists(os.environ["NO_CUDA"]) else "cpu"
"""


def test_two_executors_of_two_cores_load_a_model_for_each_gpu_and_give_the_lists_of_one(
    world: Path, published: Path, submit: Submit, tmp_path: Path
) -> None:
    driver, gpus, no_cuda = tmp_path / "driver.py", tmp_path / "gpus", tmp_path / "no_cuda"
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch/sitecustomize.py").write_text(PATCH)
    driver.write_text(DRIVER)
    gpus.write_text('#!/bin/sh\necho \'{"name": "gpu", "addresses": ["0"]}\'\n')
    gpus.chmod(0o755)
    settings = {
        f"spark.{part}.resource.gpu.{name}": value
        for part in ("worker", "executor")
        for name, value in (("amount", "1"), ("discoveryScript", str(gpus)))
    }
    arguments = [str(ROOT), str(world / "config.yaml"), str(tmp_path / "spark/work"), str(no_cuda)]
    own = {"PYTHONPATH": f"{tmp_path / 'patch'}{os.pathsep}{ROOT}", "NO_CUDA": str(no_cuda)}
    process = submit(
        "--master", "local-cluster[2,2,1024]", *flags({**settings, **of_executors()}), str(driver), *arguments, **own
    )
    printed, told = process.communicate()
    assert process.returncode == 0, printed + told
    found = json.loads(printed.splitlines()[-1])
    assert found["codes"] == [0, 5, 0], printed
    first, last = (json.loads(line) for line in printed.splitlines() if line.startswith('{"job": "score"'))
    assert (first["workers"], first["model_loads"]) == (2, 2)  # one process on each executor, one model in each
    assert len(found["bundles"]) == len(set(found["bundles"])) == 2  # once in each executor's folder
    assert rows_of_first(world, "top_n") == rows_of_first(published, "top_n")
    lists = [{**row, "run_id": "first"} for row in rows(world, "recommendations")]  # of the run on cores
    assert lists == rows(published, "recommendations")
    assert [line for line in printed.splitlines() if line.startswith("flmrec score: ")] == [
        "flmrec score: EnvironmentFault: score.gpus_per_task: got a GPU from Spark, "
        "but torch finds no CUDA device on the executor"
    ]
    assert last["run_id"] == "on cores"
