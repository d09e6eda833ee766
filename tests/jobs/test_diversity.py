"""jobs/score.py with `score.diversity`: what is published, by whichever strategy, against the lists of all items."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deltalake import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from flmrec_spark.config import load_config
from flmrec_spark.prompts import load_template
from flmrec_spark.reranking import Reranker, SparseVectors
from flmrec_spark.stages.baselines.content import tf_idf
from flmrec_spark.tables.delta import Tables
from jobs import evaluate, score
from tests.prepared import prepared_rows, write_prepared
from tests.recommended import recommended
from tests.scored import write_checkpoint
from tests.tiny import save_tiny
from tests.world import ITEMS, USERS, write_config

STRATEGIES = ["flm", "hybrid", "als"]
EVERYTHING = ("score.exclude_seen=false",)
CAPPED = "score.diversity.caps={genre: 1}"
MIXED = [None, "drama", "drama comedy", "comedy", "sci-fi", "drama sci-fi"]  # the model lists two comedies first

Row = dict[str, Any]
Lists = dict[str, list[tuple[str, float]]]


@pytest.fixture(scope="module")
def world(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared tables in which a genre may have several values, and a checkpoint."""
    folder = tmp_path_factory.mktemp("diversity")
    content = prepared_rows()
    for place, item in enumerate(content["items"]):
        item["genre"] = MIXED[place % len(MIXED)]
    write_prepared(folder / "tables", content)
    write_checkpoint(folder / "checkpoint")
    save_tiny(folder / "model")
    own = {"root": str(folder / "tables"), "database": "diversity", "metastore": None}
    baselines = {"baselines": ["popularity", "item_knn"]}
    write_config(folder, tables=own, score={"n": 3, "partitions": 2}, evaluate=baselines)
    return folder


def run(folder: Path, *argv: str) -> int:
    return score.main(["--config", str(folder / "config.yaml"), *argv])


def rows(folder: Path, name: str) -> list[Row]:
    return DeltaTable(str(folder / "tables" / name)).to_pyarrow_table().to_pylist()


def published(folder: Path) -> Lists:
    return lists_of(rows(folder, "recommendations"))


def made(folder: Path, *argv: str) -> Lists:
    """What a run would publish."""
    spark = SparkSession.getActiveSession()
    assert spark is not None
    return lists_of(recommended(spark, load_config(folder / "config.yaml", argv)))


def lists_of(found: list[Row]) -> Lists:
    """(item, score) of each user in the order of rank; rank and order are checked."""
    by_user: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(found, key=lambda row: row["rank"]):
        by_user[row["user_id"]].append(row)
    for own in by_user.values():
        assert [row["rank"] for row in own] == list(range(1, len(own) + 1))
        assert own == sorted(own, key=lambda row: (-row["score"], row["item_id"]))
    return {user: [(row["item_id"], row["score"]) for row in own] for user, own in by_user.items()}


@pytest.fixture(scope="module")
def whole(world: Path) -> dict[str, Lists]:
    """Every item of every user, by strategy."""
    every = (f"score.n={len(ITEMS)}", *EVERYTHING)
    found = {strategy: made(world, f"score.strategy={strategy}", *every) for strategy in STRATEGIES}
    assert all(len(own) == len(ITEMS) for lists in found.values() for own in lists.values())
    assert found["flm"] != found["hybrid"]
    return found


def genres(folder: Path, separator: str | None) -> dict[str, set[str]]:
    own = {row["item_id"]: row["genre"] for row in rows(folder, "items")}
    return {item: set(text.split(separator) if separator else [text]) if text else set() for item, text in own.items()}


@pytest.mark.parametrize(("strategy", "separator"), [("flm", " "), ("hybrid", " "), ("als", None)])
def test_a_published_list_is_the_best_that_the_caps_allow(
    world: Path, whole: dict[str, Lists], strategy: str, separator: str | None
) -> None:
    split = [f'score.diversity.separators={{genre: "{separator}"}}'] if separator else []
    assert run(world, f"score.strategy={strategy}", CAPPED, "score.diversity.pool=3", *split, *EVERYTHING) == 0
    values, found = genres(world, separator), published(world)
    assert set(found) == set(USERS)
    for user, own in found.items():
        held: Counter[str] = Counter()
        expected = []
        for item, value in whole[strategy][user]:
            if len(expected) < 3 and not any(held[genre] for genre in values[item]):
                expected.append((item, value))
                held.update(values[item])
        assert own == expected
    assert any(found[user] != whole[strategy][user][:3] for user in USERS)


def test_baselines_compare_items_by_their_texts(world: Path, whole: dict[str, Lists]) -> None:
    assert run(world, "score.strategy=als", "score.diversity.relevance=0.4", *EVERYTHING) == 0
    items = sorted(rows(world, "items"), key=lambda row: row["item_id"])
    ids, template = [item["item_id"] for item in items], load_template("en")
    reranker = Reranker(0.4, 100, SparseVectors(tf_idf([template.render_item(item) for item in items]).vectors))
    for user, own in published(world).items():
        scores = dict(whole["als"][user])
        chosen = reranker.best(np.array([scores[item] for item in ids]), 3)
        assert own == [(ids[place], scores[ids[place]]) for place in chosen]


@pytest.mark.parametrize("strategy", ["flm", "hybrid"])
def test_the_language_models_lists_keep_their_scores_and_no_partition_changes_them(
    world: Path, whole: dict[str, Lists], strategy: str
) -> None:
    asked = (f"score.strategy={strategy}", "score.diversity.relevance=0.3", "score.diversity.pool=9", *EVERYTHING)
    found = made(world, *asked)
    for user, own in found.items():
        assert own[0] == whole[strategy][user][0]
        assert set(own) <= set(whole[strategy][user][:9])
    assert any(found[user] != whole[strategy][user][:3] for user in USERS)
    if strategy == "flm":  # the hybrid's lists come from the same stage
        assert run(world, *asked, "score.partitions=5") == 0
        assert published(world) == found


def test_a_run_is_named_after_its_diversity_and_tells_it(
    spark: SparkSession, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = Tables(spark, load_config(world / "config.yaml").tables)
    told = []
    for extra in ([], ["score.diversity.pool=7"], [CAPPED, "score.diversity.relevance=0.5"]):
        assert run(world, "score.strategy=popularity", *EVERYTHING, *extra) == 0
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        told.append((summary["run_id"], tables.commits("recommendations")[0].get("diversity")))
        assert summary.get("diversity") == told[-1][1]
    assert told[0] == told[1]  # a pool alone changes nothing
    assert told[0][0] != told[2][0]
    assert [diversity for _, diversity in told[1:]] == [None, "relevance 0.5, pool 100, at most 1 of one genre"]


def test_a_list_ends_where_nothing_that_is_left_fits_and_the_run_says_so(
    world: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    comedies = "score.item_filter=genre = 'comedy'"
    assert run(world, "score.strategy=popularity", CAPPED, comedies, *EVERYTHING) == 0
    assert {len(own) for own in published(world).values()} == {1}
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["short_lists"] == len(USERS)
    assert f"{len(USERS)} lists are short, as no item left fits the caps" in caplog.text


def test_lists_over_a_cap_are_not_published(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = score.scores

    def careless(users: DataFrame, shipped: Any, *, n: int, diversity: object) -> DataFrame:
        return scores(users, shipped, n=n)

    def now() -> Lists | None:
        return published(world) if (world / "tables/recommendations").exists() else None

    before = now()
    monkeypatch.setattr(score, "scores", careless)
    assert run(world, CAPPED, 'score.diversity.separators={genre: " "}', *EVERYTHING, "--run-id", "careless") == 6
    assert "lists hold more than 1 items of one genre" in capsys.readouterr().err.splitlines()[-1]
    assert now() == before


def test_a_dry_run_tells_of_it(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(world, "--dry-run", "score.diversity.relevance=0.5") == 0
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1])["diversity"] == "relevance 0.5, pool 100"
    assert "relevance 0.5, pool 100" in "".join(printed.splitlines()[:-1])


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("score.diversity.caps={genres: 1}",), "score.diversity.caps: got genres, expected a column of items: title"),
        (("score.diversity.caps={item_id: 1}",), "score.diversity.caps: got item_id, expected a column of items"),
        (("score.diversity.caps={genre: 0}",), "score.diversity.caps.genre: got 0, expected greater than or equal to"),
        (("score.diversity.separators={genre: ','}",), "separators: got genre, expected an attribute of caps: []"),
        (("score.diversity.relevance=1.5",), "score.diversity.relevance: got 1.5"),
        (("score.diversity.relevance=0.5", "score.diversity.pool=2"), "diversity.pool: got 2, expected >= n = 3"),
        (("score.diversity.relevance=0.5", "score.depth=5"), "depth: got 5, expected null with diversity"),
    ],
)
def test_a_wrong_setting_is_told(
    world: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], told: str
) -> None:
    for dry in ([], ["--dry-run"]):
        assert run(world, *argv, *dry) == 2
        assert told in capsys.readouterr().err.splitlines()[-1]


def test_an_evaluation_measures_the_lists_that_would_be_published(
    spark: SparkSession, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        "evaluate.baselines=[popularity, item_knn]",
        "score.strategy=item_knn",
        "score.diversity.relevance=0.3",
        CAPPED,
        "evaluate.hybrid=true",
        "evaluate.k=[1, 5]",
        "evaluate.against=popularity",
    ]
    page = tmp_path / "page.html"
    arguments = ["--config", str(world / "config.yaml"), *asked]
    assert evaluate.main([*arguments, "--report", str(page)]) == 0
    printed = capsys.readouterr().out
    summary = json.loads(printed.splitlines()[-1])
    assert summary["diversity"] == "relevance 0.3, pool 100, at most 1 of one genre"
    tables = Tables(spark, load_config(world / "config.yaml").tables)
    measured = tables.read("evaluation").where(F.col("run_id") == summary["run_id"]).where("segment = 'all'").collect()
    found = {(row.model, row.metric, row.k): row.value for row in measured}
    chosen = {model for model, _, _ in found if model.endswith("_diverse")}
    assert chosen == {"flm_diverse", "item_knn_diverse", "hybrid_diverse"}
    for model in ("flm", "item_knn", "hybrid"):
        own = f"{model}_diverse"
        assert f"{own} beside {model}, same users" in printed
        assert found[own, "auc", 0] is None
        assert found[own, "ndcg", 5] is None  # lists are of three
        assert found[own, "ndcg", 3] is not None  # at which no cut-off was asked for
        for metric in ("ndcg", "diversity"):
            difference = found[own, metric, 3] - found[model, metric, 3]
            assert found[f"{own} - {model}", metric, 3] == pytest.approx(difference)
        assert found[own, "ndcg", 1] == found[model, "ndcg", 1]  # the best item stands in either list
    assert any(found[f"{model}_diverse - {model}", "diversity", 3] > 0 for model in ("flm", "item_knn", "hybrid"))
    assert "flm diverse beside flm" in page.read_text(encoding="utf-8")

    assert evaluate.main(arguments) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (again["status"], again["run_id"]) == ("already done", summary["run_id"])
    assert evaluate.main([*arguments, "--run-id", summary["run_id"], "score.diversity.pool=50"]) == 7
    assert evaluate.main([*arguments, "score.diversity.caps={genres: 1}"]) == 2
    assert "score.diversity.caps: got genres" in capsys.readouterr().err.splitlines()[-1]

    alone = [*asked[2:4], "evaluate.k=[1, 5]", "evaluate.baselines=[]", "evaluate.against=null", "score.strategy=flm"]
    assert evaluate.main([*arguments[:2], *alone]) == 0  # with no baseline beside them
    run_id = json.loads(capsys.readouterr().out.splitlines()[-1])["run_id"]
    rows_alone = tables.read("evaluation").where(F.col("run_id") == run_id).where("segment = 'all'").collect()
    by_key = {(row.model, row.metric, row.k): row.value for row in rows_alone}
    assert {model for model, _, _ in by_key} == {"flm", "flm_diverse", "flm_diverse - flm"}
    for key in (("flm_diverse", "ndcg", 3), ("flm_diverse", "diversity", 3), ("flm", "ndcg", 3)):
        assert by_key[key] == found[key]
