"""jobs/evaluate.py on a world of three users and six items, with the model's scores given by hand."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from flmrec_spark.config import TablesConfig
from flmrec_spark.sections import CHEAP
from flmrec_spark.stages import models
from flmrec_spark.tables import schemas
from flmrec_spark.tables.delta import Tables
from tests.report.pages import parsed
from tests.world import MEANS

JOB = Path(__file__).parents[2] / "jobs" / "evaluate.py"
INTERACTIONS = [
    ("ann", "a", 1, True, "train"),
    ("ann", "b", 2, False, "train"),
    ("ann", "c", 3, True, "train"),
    ("ann", "a", 4, True, "test"),  # seen before: asked pointwise, not listed
    ("ann", "d", 5, True, "test"),
    ("ann", "e", 6, False, "test"),
    ("bob", "a", 1, True, "train"),
    ("bob", "c", 2, True, "train"),
    ("bob", "b", 3, True, "test"),
    ("bob", "d", 4, False, "test"),
    ("bob", "x", 5, True, "test"),  # the model refuses item x
    ("o'new", "e", 1, True, "test"),
    ("o'new", "a", 2, False, "test"),
]
SCORES = {
    "ann": {"a": 0.9, "b": 0.1, "c": 0.2, "d": 0.8, "e": 0.3},
    "bob": {"a": 0.5, "b": 0.6, "c": 0.1, "d": 0.7, "e": 0.2},
    "o'new": {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1, "e": 0.9},
}
EVALUATE = {"split": "test", "k": [2, 1, 2], "max_users": 10, "bootstrap": 20, "seed": 1, "against": "popularity"}


class FakeShipped:
    digest = "d1"
    history_length = 5
    rejected = (("x", "too long"),)
    knows_valid = True

    def of_train(self) -> FakeShipped:
        of_train = FakeShipped()
        of_train.knows_valid = False
        return of_train


def fake_ship(spark: SparkSession, *, items: DataFrame, users: DataFrame, **given: object) -> FakeShipped:
    assert spark and set(given) == {"checkpoint", "score"}
    assert (items.columns, users.columns) == (["item_id", "title"], ["user_id"])
    return FakeShipped()


def fake_scores(users: DataFrame, shipped: FakeShipped, *, n: int) -> DataFrame:
    """What the model would answer: SCORES, for the candidates that are not excluded."""
    assert shipped.digest == "d1"
    flat = [(user, item, score) for user, known in SCORES.items() for item, score in known.items()]
    known = users.sparkSession.createDataFrame(flat, "user_id string, item_id string, score double")
    asked = known.join(users, "user_id").where(
        ~F.array_contains("excluded", F.col("item_id"))
        & F.coalesce(F.array_contains("candidates", F.col("item_id")), F.lit(True))
    )
    rank = F.row_number().over(Window.partitionBy("user_id").orderBy(F.desc("score"), "item_id"))
    return (
        asked.withColumn("rank", rank)
        .where(F.col("rank") <= n)
        .select("user_id", "rank", "item_id", "score", F.col("score").alias("probability"))
    )


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], int]:
    """The job, with the model replaced."""
    spec = importlib.util.spec_from_file_location("evaluate_under_test", JOB)
    assert spec is not None and spec.loader is not None
    job: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, job)  # its dataclass looks itself up
    spec.loader.exec_module(job)
    monkeypatch.setattr(job, "ship", fake_ship)
    monkeypatch.setattr(models, "scores", fake_scores)
    monkeypatch.setattr(job, "scores", fake_scores)
    return job.main  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def tables(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The world; nothing is in split valid."""
    root = str(tmp_path_factory.mktemp("evaluate") / "tables")
    tables = Tables(spark, TablesConfig(root=root, database="evaluate_job", metastore=None))
    columns = "user_id string, item_id string, moment int, is_liked boolean, split string"
    rows = spark.createDataFrame(INTERACTIONS, columns).selectExpr(
        "*", "null::timestamp timestamp", "null::double rating", "null::string event", "is_liked::int::double value"
    )
    tables.replace(schemas.INTERACTIONS, rows, {})
    items = spark.createDataFrame([(item, item) for item in "abcdex"], "item_id string, title string")
    tables.replace(schemas.items({}), items, {})
    users = spark.createDataFrame([(user,) for user in (*SCORES, "without rows")], "user_id string")
    tables.replace(schemas.users({}), users, {})
    return tables


@pytest.fixture
def config(tmp_path: Path, tables: Tables) -> Path:
    path = tmp_path / "config.yaml"
    values = {
        "tables": tables.config.model_dump(),
        "prepare": {"interactions": {"table": "none"}},
        "model": {"path": "none"},
        "checkpoint": "none",
        "evaluate": {**EVALUATE, "baselines": MEANS, "hybrid": False},
    }
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_a_split_without_rows_ends_the_job(
    main: Callable[[Sequence[str]], int], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(config), "evaluate.split=valid", "--traceback"]) == 3
    message = "table interactions: got no rows of split valid, expected some; see prepare.split"
    assert message in capsys.readouterr().err


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What the page reads of one: its training."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps({"history": [{"step": 3, "auc": 0.5}, {"step": 6, "auc": 0.7}]}))
    return folder


def test_a_report_without_its_folder_ends_the_job_before_anything_is_scored(
    main: Callable[[Sequence[str]], int], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "none" / "report.html"
    assert main(["--config", str(config), "--report", str(file)]) == 5
    printed = capsys.readouterr()
    assert f"--report: got {file}, expected a file in a folder that is there" in printed.err
    assert "ship" not in printed.out


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
    own = TablesConfig(root=str(tmp_path / "tables"), database="evaluate_valid", metastore=None)
    for name, schema in (("items", schemas.items({})), ("users", schemas.users({}))):
        Tables(spark, own).replace(schema, tables.read(name), {})
    moved = tables.read("interactions").withColumn("split", F.regexp_replace("split", "test", "valid"))
    Tables(spark, own).replace(schemas.INTERACTIONS, moved, {})
    asked = []

    def scores_of(users: DataFrame, shipped: FakeShipped, *, n: int) -> DataFrame:
        asked.append(shipped.knows_valid)
        return fake_scores(users, shipped, n=n)

    monkeypatch.setattr(models, "scores", scores_of)
    monkeypatch.setitem(main.__globals__, "scores", scores_of)
    settings = [f"tables.root={own.root}", f"tables.database={own.database}", "evaluate.split=valid"]
    told = ["--config", str(config), f"checkpoint={checkpoint}", "--report", str(tmp_path / "page.html")]
    assert main([*told, *settings]) == 0
    assert len(asked) == 3 and not any(asked)  # rows, lists, and the lists of the page


def test_what_was_trained_on_other_interactions_is_told_of(
    main: Callable[[Sequence[str]], int], config: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = ["--config", str(config), f"checkpoint={checkpoint}", "evaluate.bootstrap=0"]
    trained = "the checkpoint was trained on version 0 of the table interactions and is measured on version 1"
    for version, is_told in ((1, False), (0, True)):
        (checkpoint / "metrics.json").write_text(json.dumps({"tables": {"interactions": version}}))
        assert main(asked) == 0
        assert (trained in caplog.text) == is_told


def test_what_is_written_to_the_tables_meanwhile_is_for_the_next_evaluation(
    main: Callable[[Sequence[str]], int], config: Path, tables: Tables, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spark, own = tables.spark, TablesConfig(root=str(tmp_path / "tables"), database="evaluate_late", metastore=None)
    late = Tables(spark, own)
    for name, schema in (
        ("interactions", schemas.INTERACTIONS),
        ("items", schemas.items({})),
        ("users", schemas.users({})),
    ):
        late.replace(schema, tables.read(name), {})

    def ship(*given: Any, **named: Any) -> FakeShipped:
        late.replace(schemas.INTERACTIONS, tables.read("interactions").where("split = 'train'"), {})
        return fake_ship(*given, **named)

    monkeypatch.setitem(main.__globals__, "ship", ship)
    assert main(["--config", str(config), f"tables.root={own.root}", f"tables.database={own.database}"]) == 0
    runs = late.read("runs").collect()
    assert [(row.inputs["interactions"], row.counts["held_out_rows"]) for row in runs] == [("1", 8)]


def test_measurements_that_somebody_deleted_are_made_again(
    main: Callable[[Sequence[str]], int], config: Path, tables: Tables, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--config", str(config), "evaluate.bootstrap=3"]
    assert main(asked) == 0
    run_id = json.loads(capsys.readouterr().out.splitlines()[-1])["run_id"]
    tables.spark.sql(f"DELETE FROM {tables.reference('evaluation')} WHERE run_id = '{run_id}'")
    assert main(asked) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (again["run_id"], again["status"]) == (run_id, "done")
    assert tables.read("evaluation").where(F.col("run_id") == run_id).count() == again["measurements"]


def test_the_report_is_the_same_when_the_run_is_done_already(
    main: Callable[[Sequence[str]], int],
    config: Path,
    checkpoint: Path,
    tables: Tables,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--config", str(config), f"checkpoint={checkpoint}", "evaluate.bootstrap=5", "--report"]
    assert main([*arguments, str(tmp_path / "first.html")]) == 0
    first, version = json.loads(capsys.readouterr().out.splitlines()[-1]), tables.version("evaluation")
    assert main([*arguments, str(tmp_path / "again.html")]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (first["status"], again["status"]) == ("done", "already done")
    assert {**again, "seconds": 0, "status": 0} == {**first, "seconds": 0, "status": 0}
    assert tables.version("evaluation") == version
    texts = [(tmp_path / f"{name}.html").read_text(encoding="utf-8") for name in ("first", "again")]
    assert texts[0] == texts[1]
    read = parsed(texts[0])
    people = read.all("section", class_="person")
    assert len(people) == 3  # ann, bob and o'new; the title of an item is its id
    new = next(one for one in people if "none: a new user" in one.text())
    assert [one.text() for one in new.all("bdi")] == ["e", "a", "b", "c", "d", "e"]  # listed, then liked later
    assert [one.text() for one in new.all("li", class_="hit")] == ["e 0.900 ✓"]
    assert not any(user in texts[0] for user in SCORES)
    assert "Validation AUC" in [one.text() for one in read.all("figcaption")]

    assert main([*arguments, str(tmp_path / "nobody.html"), "evaluate.report_users=0"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["run_id"] == first["run_id"]
    assert not parsed((tmp_path / "nobody.html").read_text(encoding="utf-8")).all("section", class_="person")


def test_a_named_run_with_other_settings_is_refused(
    main: Callable[[Sequence[str]], int], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--config", str(config), "evaluate.bootstrap=0", "--run-id", "it's mine"]
    assert main(named) == 0
    assert main([*named, "evaluate.k=[1]"]) == 7
    assert "run it's mine: it has measured other inputs or settings" in capsys.readouterr().err
    assert main(named) == 0


def test_a_baseline_that_is_not_there_is_told_at_once(
    main: Callable[[Sequence[str]], int], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(config), "evaluate.against=itemmean"]) == 2
    assert "evaluate: against: got 'itemmean', expected one of the baselines ['popularity'," in capsys.readouterr().err


def test_a_run_measures_model_and_baselines_on_the_same_rows(
    main: Callable[[Sequence[str]], int], config: Path, tables: Tables, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(config), f"evaluate.baselines=[{', '.join(CHEAP)}]", "evaluate.hybrid=true"]) == 0
    printed = capsys.readouterr().out
    summary = json.loads(printed.splitlines()[-1])
    counts = ("users", "held_out_rows", "unscored_rows", "users_without_list", "items", "items_rejected")
    assert [summary[name] for name in counts] == [3, 8, 1, 0, 6, 1]
    assert "7 rows of 3 users in test" in printed
    assert "flm less each baseline" in printed

    written = tables.read("evaluation").where(F.col("run_id") == summary["run_id"]).collect()
    found = {(row.model, row.metric, row.k, row.segment): row for row in written}
    assert len(found) == len(written) == summary["measurements"]
    assert {(row.run_id, row.split) for row in written} == {(summary["run_id"], "test")}
    # liked .9 .8 .6 .9 against disliked .3 .7 .4: all but .6 > .7
    assert found["flm", "auc", 0, "all"].value == pytest.approx(11 / 12)
    assert found["flm", "uauc", 0, "all"].value == pytest.approx((1 + 0 + 1) / 3)
    assert found["flm", "auc", 0, "cold users"].value == 1
    assert found["flm", "auc", 0, "warm users"].n_users == 2
    # lists of two: ann d e, bob d b, o'new e a; relevant: ann d; bob b x; o'new e
    second_of_two = (1 / math.log2(3)) / (1 + 1 / math.log2(3))
    assert found["flm", "ndcg", 2, "all"].value == pytest.approx((1 + second_of_two + 1) / 3)
    assert found["flm", "recall", 2, "all"].value == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert found["flm", "coverage", 1, "all"].value == pytest.approx(2 / 6)
    # likes: a 2, c 2; lists: ann d e, bob b d, o'new a c
    liked, disliked = [2, 0, 0, 0], [0, 0, 2]
    pairs = [(more > less) + (more == less) / 2 for more in liked for less in disliked]
    assert found["popularity", "auc", 0, "all"].value == pytest.approx(sum(pairs) / 12)
    assert found["popularity", "hit_rate", 1, "all"].value == pytest.approx(2 / 3)
    assert found["popularity", "coverage", 1, "all"].value == pytest.approx(3 / 6)
    assert found["user_item_mean", "ndcg", 2, "all"].value == found["item_mean", "ndcg", 2, "all"].value is not None
    assert found["popularity", "log_loss", 0, "all"].value is None
    assert found["user_mean", "ndcg", 2, "all"].value is None
    # d, e and x have no history: first in the lists of ann and o'new, who like them, and not in bob's, who likes x;
    # of the two hits, ann's d is first in popularity's list too
    assert found["flm", "recall", 1, "cold items"].value == pytest.approx((1 + 0 + 1) / 3)
    assert found["flm", "serendipity", 1, "all"].value == pytest.approx((0 + 0 + 1) / 3)
    assert found["item_mean - popularity", "auc", 0, "all"].value == pytest.approx(
        found["item_mean", "auc", 0, "all"].value - found["popularity", "auc", 0, "all"].value
    )
    difference = found["flm - popularity", "hit_rate", 2, "all"]
    assert difference.value == pytest.approx(3 / 3 - 2 / 3)
    assert difference.low is not None and difference.low <= difference.value <= difference.high

    parts = {"popularity", "logistic_regression", "als", "item_knn", "ease", "markov", "content_tfidf"}
    assert {f"fit {name}" for name in parts} <= set(summary["seconds"])
    for name in parts:
        assert found[name, "auc", 0, "all"].value is not None
        assert found[name, "ndcg", 2, "all"].value is not None
    assert found["logistic_regression", "log_loss", 0, "all"].value is not None
    assert found["als", "log_loss", 0, "all"].value is None
    assert ("hybrid", "auc", 0, "all") not in found  # nothing is in split valid

    runs = tables.read("runs").where(F.col("run_id") == summary["run_id"]).collect()
    assert [(row.run_id, row.job, row.verdict) for row in runs] == [(summary["run_id"], "evaluate", "done")]
    assert runs[0].inputs == {"checkpoint": "d1", "interactions": "1", "items": "1", "users": "1"}


def test_baselines_are_chosen_by_name(
    main: Callable[[Sequence[str]], int], config: Path, tables: Tables, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(config), "evaluate.baselines=[ease, content]"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "evaluate.baselines.1: got 'content', expected 'popularity', 'item_mean'" in told
    assert main(["--config", str(config), "evaluate.baselines=[ease, ease]"]) == 2
    assert "expected each name once" in capsys.readouterr().err.splitlines()[-1]
    assert main(["--config", str(config), "evaluate.baselines=[popularity]", "evaluate.bootstrap=0"]) == 0
    run_id = json.loads(capsys.readouterr().out.splitlines()[-1])["run_id"]
    written = tables.read("evaluation").where(F.col("run_id") == run_id).select("model").distinct().collect()
    assert {row.model for row in written} == {"flm", "popularity", "flm - popularity"}
