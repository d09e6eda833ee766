"""jobs/evaluate.py on a world of three users and six items, with the model's scores given by hand."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from pyspark.sql import functions as F

from flmrec_spark.sections import CHEAP
from flmrec_spark.tables.delta import Tables
from tests.jobs.evaluate.world import SCORES, SHARED
from tests.report.pages import parsed


def test_a_split_without_rows_ends_the_job(
    main: Callable[[Sequence[str]], int], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(config), "evaluate.split=valid", "--traceback"]) == 3
    message = "table interactions: got no rows of split valid, expected some; see prepare.split"
    assert message in capsys.readouterr().err


def test_a_report_without_its_folder_ends_the_job_before_anything_is_scored(
    main: Callable[[Sequence[str]], int], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "none" / "report.html"
    assert main(["--config", str(config), "--report", str(file)]) == 5
    printed = capsys.readouterr()
    assert f"--report: got {file}, expected a file in a folder that is there" in printed.err
    assert "ship" not in printed.out


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
    named = ["--config", str(config), *SHARED]
    assert main(named) == 0
    assert main([*named, "evaluate.k=[1]"]) == 7
    assert "run it's mine: it has measured other inputs or settings" in capsys.readouterr().err
    assert main(named) == 0


def test_a_table_of_somebody_else_is_told_of_before_anything_is_scored(
    main: Callable[[Sequence[str]], int],
    config: Path,
    tables: Tables,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("interactions", "items", "users"):
        shutil.copytree(f"{tables.config.root}/{name}", tmp_path / "tables" / name)
    tables.spark.range(3).write.format("delta").save(str(tmp_path / "tables/evaluation"))
    own = [f"tables.root={tmp_path}/tables", "tables.database=evaluate_of_others", f"checkpoint={tmp_path}/nowhere"]
    assert main(["--config", str(config), *own]) == 7
    assert "ConflictError: table evaluation: the table at" in capsys.readouterr().err.splitlines()[-1]


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
