"""jobs/evaluate.py: what it reads and when, and what it measures where something is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec_spark.config import TablesConfig
from flmrec_spark.errors import EnvironmentFault
from flmrec_spark.stages import models
from flmrec_spark.tables import schemas
from flmrec_spark.tables.delta import Tables, run_predicate
from tests.jobs.evaluate.world import SHARED, FakeShipped, fake_both, fake_scores, fake_ship


@pytest.mark.parametrize("names", ["", "user_mean"], ids=["none", "one without lists"])
def test_the_model_is_measured_alone_where_no_baseline_stands_beside_it(
    main: Callable[[Sequence[str]], int], config: Path, tables: Tables, capsys: pytest.CaptureFixture[str], names: str
) -> None:
    assert main(["--config", str(config), f"evaluate.baselines=[{names}]", "evaluate.against=null"]) == 0
    run_id = json.loads(capsys.readouterr().out.splitlines()[-1])["run_id"]
    written = tables.read("evaluation").where(F.col("run_id") == run_id).collect()
    values = {(row.model, row.metric, row.k): row.value for row in written if row.segment == "all"}
    assert values["flm", "auc", 0] == pytest.approx(11 / 12)
    assert values["flm", "recall", 2] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert {row.model for row in written} == {"flm", *([names, f"flm - {names}"] if names else [])}


def test_a_page_of_the_valid_split_shows_lists_of_the_model_that_was_measured(
    main: Callable[[Sequence[str]], int],
    spark: SparkSession,
    checkpoint: Path,
    config: Path,
    tables: Tables,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved = copied(tables, tmp_path, "evaluate_valid")
    own, interactions = moved.config, tables.read("interactions")
    valid = interactions.withColumn("split", F.regexp_replace("split", "test", "valid"))
    moved.replace(schemas.INTERACTIONS, valid, {})
    asked = []

    def scores_of(users: DataFrame, shipped: FakeShipped, *, n: int) -> DataFrame:
        asked.append(shipped.knows_valid)
        return fake_scores(users, shipped, n=n)

    def both_of(users: DataFrame, shipped: FakeShipped, *given: object, n: int, **named: object) -> DataFrame:
        asked.append(shipped.knows_valid)
        return fake_both(users, shipped, *given, n=n, **named)

    monkeypatch.setattr(models, "lists_of_both", both_of)
    monkeypatch.setitem(main.__globals__, "scores", scores_of)
    settings = [f"tables.root={own.root}", f"tables.database={own.database}", "evaluate.split=valid"]
    told = ["--config", str(config), f"checkpoint={checkpoint}", "--report", str(tmp_path / "page.html")]
    assert main([*told, *settings]) == 0
    assert len(asked) == 2 and not any(asked)  # rows with lists, and the lists of the page


def test_what_was_trained_on_other_interactions_is_told_of(
    main: Callable[[Sequence[str]], int], config: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = ["--config", str(config), f"checkpoint={checkpoint}", *SHARED]
    trained = "the checkpoint was trained on version 7 of the table interactions and is measured on version 1"
    for version, is_told in ((1, False), (0, False), (7, True)):  # version 1 has the rows of 0
        (checkpoint / "metrics.json").write_text(json.dumps({"tables": {"interactions": version}}))
        assert main(asked) == 0
        assert (trained in caplog.text) == is_told


def copied(tables: Tables, folder: Path, database: str) -> Tables:
    """Tables of the test's own."""
    for name in ("interactions", "items", "users"):
        shutil.copytree(tables.place(name), folder / "tables" / name)
    return Tables(tables.spark, TablesConfig(root=str(folder / "tables"), database=database, metastore=None))


def test_what_is_written_to_the_tables_meanwhile_is_for_the_next_evaluation(
    main: Callable[[Sequence[str]], int], config: Path, tables: Tables, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    late = copied(tables, tmp_path, "evaluate_late")
    own = late.config

    def ship(*given: Any, **named: Any) -> FakeShipped:
        late.replace(schemas.INTERACTIONS, tables.read("interactions").where("split = 'train'"), {})
        return fake_ship(*given, **named)

    asked = ["--config", str(config), f"tables.root={own.root}", f"tables.database={own.database}"]
    with monkeypatch.context() as meanwhile:
        meanwhile.setitem(main.__globals__, "ship", ship)
        assert main(asked) == 0
    runs = late.read("runs").collect()
    assert [(row.inputs["interactions"], row.counts["held_out_rows"]) for row in runs] == [("1", 8)]
    assert main(asked) == 3  # the next one is not done already: of the new rows none is held out


def test_measurements_that_somebody_deleted_are_made_again(
    main: Callable[[Sequence[str]], int], config: Path, tables: Tables, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--config", str(config), *SHARED]
    assert main(asked) == 0
    run_id = json.loads(capsys.readouterr().out.splitlines()[-1])["run_id"]
    tables.spark.sql(f"DELETE FROM {tables.reference('evaluation')} WHERE {run_predicate(run_id)}")
    assert main(asked) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (again["run_id"], again["status"]) == (run_id, "done")
    assert tables.read("evaluation").where(F.col("run_id") == run_id).count() == again["measurements"]


def test_what_was_measured_is_kept_where_the_page_fails_and_a_compaction_changes_nothing(
    main: Callable[[Sequence[str]], int],
    config: Path,
    tables: Tables,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables = copied(tables, tmp_path, "evaluate_kept")
    asked = ["--config", str(config), f"tables.root={tables.config.root}", "tables.database=evaluate_kept"]
    asked += ["evaluate.bootstrap=4", "--report", str(tmp_path / "page.html")]

    def full(*_: object, **__: object) -> None:
        raise EnvironmentFault("--report: no space left")

    with monkeypatch.context() as broken:
        broken.setitem(main.__globals__, "publish", full)
        assert main(asked) == 5
    version = tables.version("evaluation")
    capsys.readouterr()
    monkeypatch.setitem(main.__globals__, "_measured", None)  # nothing is measured from here on
    assert main(asked) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (first["status"], first["users"], tables.version("evaluation")) == ("done", 3, version)
    before = tables.version("interactions")
    DeltaTable.forPath(tables.spark, tables.place("interactions")).optimize().executeZOrderBy("user_id")
    assert tables.version("interactions") > before
    assert main(asked) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["status"] == "already done"
    assert main([*asked, "evaluate.bootstrap=6"]) == 1  # it would have to
