"""jobs/score.py on a small world: what is published, what is not, and what a kill leaves behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from safetensors.torch import load_file, save_file

from flmrec_spark.config import load_config
from flmrec_spark.lm import checkpoint, manifest
from flmrec_spark.lm.segments import TOO_LONG_ITEM, TOO_LONG_USER
from flmrec_spark.tables.delta import Tables
from jobs import score
from scripts import sql
from tests.score_world import (
    COLD,
    LISTED_USERS,
    SCORE,
    VERBOSE,
    Row,
    lists,
    rows,
    rows_of_first,
    run,
    runs,
    version,
    versions,
    world_rows,
)
from tests.scored import pair_scores
from tests.world import ITEMS, USERS

Capture = pytest.CaptureFixture[str]


def no_scoring(*_: object, **__: object) -> DataFrame:
    pytest.fail("the lists were scored again")


def expect_lists(
    folder: Path,
    *,
    splits: tuple[str, ...] = ("train", "valid", "test"),
    exclude_seen: bool = True,
    allowed: Callable[[str, Row], bool] = lambda user, item: True,
) -> None:
    """Compares every list with each pair scored on its own."""
    found, got, content = checkpoint.load(folder / "checkpoint"), lists(folder), world_rows()
    listed = set()
    for user in content["users"]:
        name = user["user_id"]
        if name == VERBOSE:
            continue
        own = [row for row in content["interactions"] if row["user_id"] == name and row["split"] in splits]
        newest = sorted(own, key=lambda row: (-row["moment"], row["item_id"]))[:6]
        history = [(row["item_id"], row["is_liked"], row["value"]) for row in newest]
        seen = {row["item_id"] for row in own} if exclude_seen else set()
        every = pair_scores(found, content["items"], user_id=name, profile={"group": user["group"]}, history=history)
        fields = {item["item_id"]: item for item in content["items"]}
        left = {item: p for item, p in every.items() if item not in seen and allowed(name, fields[item])}
        best = sorted(left.values(), reverse=True)[: SCORE["n"]]
        if best:
            listed.add(name)
            assert [score for _, score in got[name]] == pytest.approx(best, abs=1e-6)
            assert [left[item] for item, _ in got[name]] == pytest.approx(best, abs=1e-6)
    assert set(got) == listed


def test_every_user_has_the_list_of_every_pair_scored_alone(published: Path) -> None:
    expect_lists(published)
    assert set(lists(published)) == LISTED_USERS
    recommended = rows(published, "recommendations")
    assert {row["user_id"] for row in recommended if not row["has_history"]} == {COLD}
    assert {row["run_id"] for row in recommended} == {"first"}


def test_who_is_without_a_list_is_in_rejects_with_the_reason(published: Path) -> None:
    found = [(row["source"], row["reason"], json.loads(row["content"])) for row in rows(published, "rejects")]
    assert sorted(found, key=str) == [
        ("items", TOO_LONG_ITEM, {"item_id": "too long"}),
        ("top_n", TOO_LONG_USER, {"user_id": VERBOSE}),
    ]
    counts = dict(runs(published)["first"]["counts"])
    assert counts["users"] == counts["users_listed"] + counts["users_rejected"] == len(world_rows()["users"])
    assert (counts["items"], counts["items_rejected"], counts["rows"]) == (len(ITEMS), 1, 3 * len(LISTED_USERS))


def test_the_commit_names_run_checkpoint_and_versions(spark: SparkSession, published: Path) -> None:
    commit = Tables(spark, load_config(published / "config.yaml").tables).commits("recommendations")[0]
    assert {name: commit[name] for name in ("run_id", "interactions", "items", "users")} == {
        "run_id": "first",
        **dict.fromkeys(("interactions", "items", "users"), "0"),
    }
    assert commit["checkpoint"] == manifest.digest_of(published / "checkpoint")


def test_sql_reads_lists_by_name_and_scores_texts(published: Path, capsys: Capture) -> None:
    found = checkpoint.load(published / "checkpoint")
    template, item = found.template, {"item_id": "i03", "title": "bb", "genre": "drama"}  # i03 has no bias
    user, text = template.render_user({"group": "x"}) + template.render_no_history(), template.render_item(item)
    queries = (
        "SELECT item_id, score FROM score_published.recommendations WHERE user_id = '007' ORDER BY rank",
        "SELECT title FROM score_published.recommendations_with_titles WHERE user_id = '007' ORDER BY rank",
        f"SELECT flmrec_score('{user}', '{text}') AS p, flmrec_score(null, 'x') IS NULL AS q",
    )
    settings = ["--csv", "--database", "score_published", "--checkpoint", str(published / "checkpoint")]
    assert sql.main([*settings, *queries]) == 0
    printed = capsys.readouterr().out.splitlines()
    own = lists(published)["007"]
    titles = {row["item_id"]: row["title"] for row in rows(published, "items")}
    assert printed[1:4] == [f"{_quoted(item)},{score}" for item, score in own]
    assert printed[5:8] == [titles[item] for item, _ in own]
    expected = pair_scores(found, [item], user_id="none", profile={"group": "x"}, history=[])["i03"]
    probability, is_null = printed[9].split(",")
    assert (float(probability), is_null) == (pytest.approx(expected, abs=1e-6), "True")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if '"' in text else text


def test_the_same_run_again_changes_nothing(published: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    before = versions(published)
    monkeypatch.setattr(score, "scores", no_scoring)
    assert run(published, "--run-id", "first") == 0
    assert json.loads(capsys.readouterr().out)["status"] == "already done"
    assert versions(published) == before


def test_the_same_run_id_with_other_settings_is_refused_and_the_first_stays_done(
    published: Path, capsys: Capture
) -> None:
    before = versions(published)
    assert run(published, "--run-id", "first", "score.n=2") == 7
    told = "--run-id: first was published with other inputs or settings; give this run another id"
    assert f"flmrec score: ConflictError: {told}" in capsys.readouterr().err
    assert versions(published) == before
    assert runs(published)["first"]["verdict"] == "done"


def broken(users: DataFrame, shipped: Any, *, n: int, diversity: object = None) -> DataFrame:
    """Lists with a nan, a seen item, an item twice and a lost user."""
    top = score_lists(users, shipped, n=n).where("user_id <> 'u05'")
    first, second = (F.col("user_id") == user for user in ("u00", "u01"))
    item = F.when(first, F.lit(ITEMS[0])).otherwise(F.col("item_id"))  # u00 has rated it
    return top.withColumn("item_id", item).withColumn(
        "score", F.when(second, F.lit(float("nan"))).otherwise(F.col("score"))
    )


score_lists = score.scores


def test_lists_that_fail_their_audit_leave_the_published_table_as_it_was(
    published: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    before, content = version(published, "recommendations"), rows(published, "recommendations")
    monkeypatch.setattr(score, "scores", broken)
    assert run(published, "--run-id", "bad", "score.min_coverage=1.0") == 6
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("flmrec score: AuditError: run bad is not published, the table is as it was: ")
    for fault in (
        "1 users came in and are neither",
        "2 items stand twice",
        "3 scores are no number from 0 to 1",
        "1 listed items were already seen",
        "14 of 16 users have a list",
        "; items refused: 1 as item text exceeds prompts.item_tokens",
    ):
        assert fault in told
    assert not any(user in told for user in LISTED_USERS)
    assert (version(published, "recommendations"), rows(published, "recommendations")) == (before, content)
    failed = runs(published)["bad"]
    assert failed["verdict"] == "failed"
    assert told.endswith(failed["message"])


def test_a_model_that_answers_nan_publishes_nothing(world: Path, capsys: Capture) -> None:
    head = load_file(world / "checkpoint/head.safetensors")
    save_file({**head, "rating.offset": head["rating.offset"] * float("nan")}, world / "checkpoint/head.safetensors")
    (world / "checkpoint/manifest.json").unlink()
    manifest.write(world / "checkpoint")
    assert run(world) == 4
    assert (
        "CheckpointError: checkpoint: 17 of 17 scores are no numbers, expected finite ones" in capsys.readouterr().err
    )
    assert not (world / "tables/recommendations").exists()


def test_what_was_staged_is_published_without_scoring_again(
    world: Path, published: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Tables, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run(world, "--run-id", "first")
    assert not (world / "tables/recommendations").exists()
    staged = version(world, "top_n")
    monkeypatch.setattr(score, "scores", no_scoring)
    assert run(world, "--run-id", "first", "score.min_coverage=1.0") == 6
    assert "15 of 16 users have a list" in capsys.readouterr().err
    with monkeypatch.context() as patch:  # killed after the commit, before the view and the record
        patch.setattr(score, "_name_tables", killed)
        with pytest.raises(KeyboardInterrupt):
            run(world, "--run-id", "first")
    committed = version(world, "recommendations")
    assert run(world, "--run-id", "first") == 0
    assert (version(world, "top_n"), version(world, "recommendations")) == (staged, committed)
    for name in ("recommendations", "top_n", "rejects"):
        assert rows_of_first(world, name) == rows_of_first(published, name)
    assert runs(world)["first"]["verdict"] == "done"
    again, unbroken = (dict(runs(folder)["first"]["counts"]) for folder in (world, published))
    for computed in (
        "pairs",
        "tokens",
        "scorer_ms",
        "workers",
        "model_loads",
        "peak_rss_mb",
    ):  # told by tasks, of which none ran
        again.pop(computed, None)
        unbroken.pop(computed)
    assert again == unbroken
    told, scored = (dict(runs(folder)["first"]["versions"]) for folder in (world, published))
    for name in ("precision", "precision_because"):  # of the attempt that scored
        assert told[name] == scored[name]
    tables = Tables(SparkSession.active(), load_config(world / "config.yaml").tables)
    assert tables.commits("recommendations")[0]["precision"] == scored["precision"]


def test_staged_lists_that_somebody_deleted_are_scored_again(done: Path) -> None:
    shutil.rmtree(done / "tables/recommendations")  # as if they had not been published
    DeltaTable(str(done / "tables/top_n")).delete("run_id = 'first'")
    assert run(done, "--run-id", "first") == 0
    expect_lists(done)


def test_settings_that_come_back_publish_their_lists_again(
    spark: SparkSession, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(world) == 0
    first = rows(world, "recommendations")
    pairs = [(user, item) for user in (*USERS[:2], "stranger") for item in (*ITEMS[:9], "gone", "too long")]
    spark.createDataFrame(pairs, "user_id string, item_id string").write.parquet(str(world / "pairs"))
    asked = f"score.candidates={{path: {world / 'pairs'}, format: parquet}}"
    some = ("score.item_filter=genre <> 'drama'", "score.exclude_seen=false", "score.history_splits=[train]")
    assert run(world, asked, *some, "score.min_coverage=0.1") == 0
    expect_lists(
        world,
        splits=("train",),
        exclude_seen=False,
        allowed=lambda user, item: user in USERS[:2] and item["item_id"] in ITEMS[:9] and item["genre"] != "drama",
    )
    monkeypatch.setattr(score, "scores", no_scoring)
    assert run(world) == 0
    assert rows(world, "recommendations") == first


def test_what_is_written_to_the_inputs_meanwhile_waits_for_the_next_run(
    spark: SparkSession, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    tables = Tables(spark, load_config(world / "config.yaml").tables)

    def ship(*given: Any, **named: Any) -> Any:
        spark.createDataFrame([("late", "x")], "user_id string, group string").write.format("delta").mode(
            "append"
        ).save(tables.place("users"))
        return shipped_by(*given, **named)

    shipped_by = score.ship
    monkeypatch.setattr(score, "ship", ship)
    assert run(world) == 0
    assert set(lists(world)) == LISTED_USERS
    assert tables.commits("recommendations")[0]["users"] == "0"
    monkeypatch.undo()
    assert run(world) == 0
    assert set(lists(world)) == {*LISTED_USERS, "late"}
    assert tables.commits("recommendations")[0]["users"] == "1"


def empty_items(folder: Path) -> None:
    DeltaTable(str(folder / "tables/items")).delete()


def without_a_user(folder: Path) -> None:
    """As a prepare leaves the tables that is killed between interactions and users."""
    DeltaTable(str(folder / "tables/users")).delete(f"user_id = '{sorted(LISTED_USERS - {COLD})[0]}'")


def foreign_table(folder: Path) -> None:
    spark = SparkSession.getActiveSession()
    assert spark is not None
    spark.range(3).write.format("delta").save(str(folder / "tables/recommendations"))


@pytest.mark.parametrize(
    ("harm", "argv", "code", "told"),
    [
        (lambda folder: shutil.rmtree(folder / "checkpoint"), (), 4, "CheckpointError: .*manifest.json: not found"),
        (lambda folder: shutil.rmtree(folder / "tables/users"), (), 3, "InputError: table users: not found at"),
        (empty_items, (), 3, "InputError: items: got 0 of which none may be listed"),
        (without_a_user, (), 3, "InputError: table users: lacks ids that interactions name; run jobs/prepare.py again"),
        (without_a_user, ("score.strategy=item_knn",), 3, "InputError: table users: lacks ids that interactions name"),
        (foreign_table, (), 7, "ConflictError: table recommendations: the table at"),
        (None, ("score.item_filter=in_stock = true",), 2, "ConfigError: score.item_filter: got 'in_stock = true'"),
        (None, ("score.item_filter='false'",), 3, "InputError: items: got 18 of which none may be listed"),
        (None, ("score.candidates={path: none, format: csv}",), 3, "InputError: score.candidates:"),
    ],
)
def test_what_stands_in_the_way_is_told_before_anything_is_staged(
    world: Path, capsys: Capture, harm: Callable[[Path], None] | None, argv: tuple[str, ...], code: int, told: str
) -> None:
    if harm is not None:
        harm(world)
    assert run(world, *argv) == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("flmrec score: ")
    assert all(part in line for part in told.split(".*"))
    assert not (world / "tables/top_n").exists()
