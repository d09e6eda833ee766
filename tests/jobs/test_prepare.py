"""jobs/prepare.py from files to tables, twice, on the forms that people bring."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from flmrec_spark import columns as c
from flmrec_spark.config import TablesConfig
from flmrec_spark.tables.delta import Tables

JOB = Path(__file__).parents[2] / "jobs" / "prepare.py"
NAMES = ("interactions", "items", "users", "examples")


@pytest.fixture(scope="module")
def job() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare_job", JOB)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(tmp_path: Path, tables_config: TablesConfig) -> Any:
    """Writes sources and a config of nothing but them and the given keys; returns the config's path."""

    def written(sources: dict[str, str], **settings: Any) -> str:
        for name, text in sources.items():
            (tmp_path / f"{name}.csv").write_text(text, encoding="utf-8")
        places = {name: {"path": str(tmp_path / f"{name}.csv"), "format": "csv"} for name in sources}
        values = {
            "tables": tables_config.model_dump(),
            "prepare": places | settings,
            "model": {"path": "none"},
            "checkpoint": "none",
        }
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        return str(file)

    return written


def summary(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    lines = capsys.readouterr().out.splitlines()
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def contents(tables: Tables, name: str) -> list[Any]:
    return sorted(map(str, tables.read(name).collect()))


def test_ratings_without_times_or_items_and_the_same_run_again(
    job: ModuleType, config: Any, tables: Tables, capsys: pytest.CaptureFixture[str]
) -> None:
    ratings = "".join(
        f"{user},{item},{1 + (item + place) % 5}\n" for place, user in enumerate("aéc") for item in range(10)
    )
    path = config({"interactions": "user_id,item_id,rating\n" + ratings + "a,0,x\n"})
    assert job.main(["--config", path]) == 0
    first = summary(capsys)
    assert first | {"seconds": 0, "run_id": 0} == {
        **{"job": "prepare", "status": "done", "run_id": 0, "seconds": 0},
        **{"rows_in": 31, "rows_kept": 30, "rows_rejected": 1, "reject_unreadable_rating": 1},
        **{"interactions": 30, "repeats": 0, "items": 10, "users": 3, "examples": 9},
    }
    splits = {row[c.SPLIT]: row["count"] for row in tables.read("interactions").groupBy(c.SPLIT).count().collect()}
    assert splits == {c.TRAIN: 24, c.VALID: 3, c.TEST: 3}
    assert contents(tables, "items") == sorted(f"Row(item_id='{item}', title='{item}')" for item in range(10))
    (refused,) = tables.read("rejects").collect()
    assert (refused.run_id, refused.job, refused.source) == (first["run_id"], "prepare", "interactions")
    assert json.loads(refused.content) == {"user_id": "a", "item_id": "0", "rating": "x"}
    versions = {name: tables.version(name) for name in NAMES}
    before = {name: contents(tables, name) for name in (*NAMES, "rejects")}
    assert job.main(["--config", path]) == 0
    assert {name: tables.version(name) for name in NAMES} == versions
    assert {name: contents(tables, name) for name in (*NAMES, "rejects")} == before
    assert summary(capsys)["run_id"] == first["run_id"]


def test_a_behaviour_log_with_worths(job: ModuleType, config: Any, tables: Tables) -> None:
    events = ["view", "cart", "view", "favourite", "buy", "view", "view", "cart", "view", "buy"]
    log = [f"u1,i{place % 4},{event},{1_600_000_000 + place}\n" for place, event in enumerate(events)]
    worths = {"view": 1, "cart": 2, "favourite": 2, "buy": 3}
    path = config(
        {"interactions": "user_id,item_id,event,timestamp\n" + "".join(reversed(log))},
        event_values=worths,
        liked_at_least=2,
        repeats="all",
    )
    assert job.main(["--config", path]) == 0
    rows = tables.read("interactions").orderBy(c.MOMENT).collect()
    assert [(row.moment, row.event, row.value, row.is_liked) for row in rows] == [
        (place, event, float(worths[event]), event != "view") for place, event in enumerate(events, start=1)
    ]
    examples = {row[c.SPLIT]: row for row in tables.read("examples").collect()}
    assert [entry.item_id for entry in examples[c.TEST].history] == [
        "i0",
        "i3",
        "i2",
        "i1",
        "i0",
        "i3",
        "i2",
        "i1",
        "i0",
    ]
    assert [entry.value for entry in examples[c.VALID].targets] == [1.0]


def test_of_a_behaviour_log_one_row_stays_of_a_pair_in_a_split(
    job: ModuleType, config: Any, tables: Tables, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["a view", "a buy", "b view", "a view", "b view", "c view", "a buy", "d view"]
    log = [
        f"u1,{row.replace(' ', ',')},{1_600_000_000 + place}\n" for place, row in enumerate([*train, "b buy", "d buy"])
    ]
    path = config(
        {"interactions": "user_id,item_id,event,timestamp\n" + "".join(reversed(log))},
        event_values={"view": 1, "buy": 3},
        liked_at_least=3,
    )
    expected = {
        "best": ["1 a buy", "2 b view", "3 c view", "4 d view", "5 b buy", "6 d buy"],
        "last": ["1 b view", "2 c view", "3 a buy", "4 d view", "5 b buy", "6 d buy"],
        "all": [f"{place} {row}" for place, row in enumerate([*train, "b buy", "d buy"], start=1)],
    }
    for repeats, rows in expected.items():
        assert job.main(["--config", path, f"prepare.repeats={repeats}"]) == 0
        told = capsys.readouterr().out
        counts = json.loads(told.strip().splitlines()[-1])
        assert counts["rows_kept"] == 10 == counts["interactions"] + counts["repeats"]
        assert (f"{counts['repeats']} interactions stand for" in told) == (repeats != "all")
        found = tables.read("interactions").orderBy(c.MOMENT).collect()
        assert [f"{row.moment} {row.item_id} {row.event}" for row in found] == rows
        assert [row.split for row in found][-2:] == [c.VALID, c.TEST]


@pytest.mark.parametrize("day", ["", ",2026-11-02"], ids=["no times", "one day"])
def test_a_log_that_knows_the_day_alone_is_not_refused_for_what_happened_often(
    job: ModuleType, config: Any, tables: Tables, capsys: pytest.CaptureFixture[str], day: str
) -> None:
    rows = [
        f"u{user},i{item},{event}{day}\n" for user in range(4) for item in range(9) for event in 3 * ["view"] + ["buy"]
    ]
    head = "user_id,item_id,event" + (",timestamp" if day else "") + "\n"
    worths = {"event_values": {"view": 1, "buy": 3}, "liked_at_least": 3}
    path = config({"interactions": head + "".join(rows)}, repeats="all", **worths)
    assert job.main(["--config", path]) == 0
    told = capsys.readouterr().out
    counts = json.loads(told.strip().splitlines()[-1])
    expected = {"rows_in": 144, "rows_kept": 144, "rows_rejected": 0, "interactions": 36, "repeats": 108}
    assert counts | expected == counts and "108 interactions stand for no row of their own" in told
    assert {row.event for row in tables.read("interactions").collect()} == {"buy"}


def test_items_and_users_with_attributes_and_every_refusal_counted(
    job: ModuleType, config: Any, tables: Tables, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(
        {
            "interactions": "user_id,item_id,rating\nu1,i1,5\nu1,i9,4\nu2,i2,3\nu2,i2,3\n,i1,1\n",
            "items": 'item_id,title,year\ni1,"One, ""1""",1999\ni2,Two,\ni2,Two,2001\n',
            "users": "user_id,age\nu1,30\nu3,40\n",
        },
        max_reject_share=0.7,
    )
    assert job.main(["--config", path, "--run-id", "r1", "prepare.items.types={year: int}"]) == 0
    counts = summary(capsys)
    expected = {
        **{
            "rows_in": 10,
            "rows_kept": 6,
            "rows_rejected": 4,
            "items": 2,
            "users": 3,
            "interactions": 2,
            "run_id": "r1",
        },
        **{"reject_item_not_in_items": 1, "reject_missing_user_id": 1, "reject_exact_duplicate": 1},
        "reject_duplicate_item": 1,
    }
    assert counts | expected == counts
    assert sorted(tuple(row) for row in tables.read("items").collect()) == [
        ("i1", 'One, "1"', 1999),
        ("i2", "Two", 2001),
    ]
    assert sorted(tuple(row) for row in tables.read("users").collect()) == [("u1", "30"), ("u2", None), ("u3", "40")]
    rejects = {(row.source, row.reason) for row in tables.read("rejects").collect()}
    assert ("items", "duplicate item") in rejects and ("interactions", "item not in items") in rejects
    (record,) = tables.read("runs").collect()
    assert set(record.inputs) == {"interactions", "items", "users"} and record.counts["rows_in"] == 10


def test_over_the_share_only_the_rejects_are_written(
    job: ModuleType, config: Any, tables: Tables, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config({"interactions": "user_id,item_id,rating\nu,i,1\nu,j,x\n"})
    assert job.main(["--config", path]) == 8
    error = capsys.readouterr().err
    assert "prepare.interactions: refused 1 of 2 rows (1 unreadable rating), expected at most" in error
    assert "Traceback" not in error
    assert tables.read("rejects").count() == 1
    assert not any(tables.exists(name) for name in NAMES)
    (record,) = tables.read("runs").collect()
    assert record.verdict == "failed" and record.counts["rows_rejected"] == 1


def test_a_night_that_fails_is_on_record_though_the_one_before_was_done(
    job: ModuleType, config: Any, tables: Tables
) -> None:
    path = config({"interactions": "user_id,item_id,rating\nu,i,1\nu,j,2\n"})
    assert job.main(["--config", path]) == 0
    prepared = contents(tables, "interactions")
    assert config({"interactions": "user_id,item_id,rating\nu,i,1\nu,j,x\n"}) == path
    assert job.main(["--config", path]) == 8
    (record,) = tables.read("runs").collect()
    assert record.verdict == "failed" and "refused 1 of 2 rows" in record.message
    assert contents(tables, "interactions") == prepared


@pytest.mark.parametrize(
    ("text", "override", "code", "message"),
    [
        ("user_id,item_id\n", "prepare.split.seed=1", 3, "prepare.interactions: got no rows, expected at least one"),
        ("user_id,item_id\nu,i\n", "prepare.split.by=column", 3, "got no column 'split', expected one for split"),
        ("user_id,item_id\nu,i\n", "prepare.split.by=global_time", 2, "prepare.split.by: got global_time"),
        ("user_id,item_id\nu,i\n", "prepare.timestamp_format=YYYY-ww", 2, "prepare.timestamp_format: got 'YYYY-ww'"),
        ("user_id,item_id\nu,i\n", "prepare.interactions.path=/no/file.csv", 3, "got /no/file.csv, expected a csv"),
        ("user_id,item_id,event\nu,i,e\n", "prepare.split.seed=1", 2, "prepare.event_values: got none"),
        ("user_id,item_id\n ,i\n", "prepare.max_reject_share=1.0", 3, "all 1 rows were refused"),
        (
            "user_id,item_id,rating\nu,i,9\n",
            "prepare.rating_range=[1, 5]",
            8,
            "(1 rating out of range), expected at most prepare.max_reject_share = 0.05; see the table rejects and "
            "prepare.rating_range; nothing else changed",
        ),
        (
            "user_id,item_id\nu,i\n",
            "prepare.rating_range=[1, 5]",
            2,
            "prepare.rating_range: got [1.0, 5.0], expected null",
        ),
        (
            "user_id,item_id\nu\ufffd,i\nu,i\nv,i\n",
            "prepare.max_reject_share=0.0",
            8,
            "(1 unreadable id), expected at most prepare.max_reject_share = 0.0; see the table rejects and "
            "prepare.interactions.options.encoding; nothing else changed",
        ),
        (
            "user_id,item_id\nu,i\n",
            f"prompts.template={JOB.parents[1] / 'conf/templates/movies.yaml'}",
            2,
            "movies.yaml: user: unknown field {occupation}, known: ",
        ),
        (
            "user_id,item_id,timestamp\nu,i,2020/10/06 12:00\n",
            "prepare.max_reject_share=0.0",
            8,
            "(1 unreadable timestamp), expected at most prepare.max_reject_share = 0.0; see the table rejects and "
            "prepare.timestamp_format; nothing else changed",
        ),
    ],
)
def test_what_cannot_be_prepared_is_one_line_and_its_exit_code(
    job: ModuleType,
    config: Any,
    tables: Tables,
    capsys: pytest.CaptureFixture[str],
    text: str,
    override: str,
    code: int,
    message: str,
) -> None:
    assert job.main(["--config", config({"interactions": text}), override]) == code
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("flmrec prepare: ")]
    assert len(error) == 1 and message in error[0]
    assert not any(tables.exists(name) for name in NAMES)


def test_a_source_that_changes_while_it_is_read_is_an_input_error(
    job: ModuleType,
    config: Any,
    tables: Tables,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clean = job.clean_interactions
    lossy = lambda frame, *rest, **settings: clean(frame.where("item_id = 'i'"), *rest, **settings)  # noqa: E731
    monkeypatch.setattr(job, "clean_interactions", lossy)
    path = config({"interactions": "user_id,item_id\nu,i\nu,j\n"})
    assert job.main(["--config", path]) == 3
    assert "got 2 rows and then 1, expected the same twice" in capsys.readouterr().err
    assert not tables.exists("interactions")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "every interaction is liked, whatever its rating"),
        ({"liked_at_least": 9.0}, "no interaction is liked"),
        ({"liked_at_least": 3.0}, ""),
    ],
)
def test_a_threshold_that_tells_nothing_apart_is_told(
    job: ModuleType, config: Any, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], told: str
) -> None:
    ratings = "".join(f"a,{item},{1 + item % 5}\n" for item in range(10))
    assert job.main(["--config", config({"interactions": "user_id,item_id,rating\n" + ratings}, **settings)]) == 0
    warned = [record.getMessage() for record in caplog.records if "see prepare.liked_at_least" in record.getMessage()]
    assert len(warned) == bool(told) and all(told in one for one in warned)


def test_a_table_of_somebody_else_is_told_of_before_anything_is_written(
    job: ModuleType, config: Any, tables: Tables, capsys: pytest.CaptureFixture[str]
) -> None:
    tables.spark.range(3).write.format("delta").save(tables.place("users"))
    assert job.main(["--config", config({"interactions": "user_id,item_id\nann,a\n"})]) == 7
    assert "ConflictError: table users: the table at" in capsys.readouterr().err.splitlines()[-1]
    assert not any(tables.exists(name) for name in ("interactions", "items", "examples", "rejects"))


def test_the_config_that_ones_own_data_start_from(
    job: ModuleType, tables: Tables, tables_config: TablesConfig, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    log = [
        f"m{place % 5},s{place % 4},{event},{1_700_000_000 + place}" for place, event in enumerate(["view", "buy"] * 20)
    ]
    (tmp_path / "data/interactions.csv").write_text("member,sku,what,at\n" + "\n".join(log) + "\n", encoding="utf-8")
    shelf = "".join(f"s{place},名 {place},brand {place % 2}\n" for place in range(4))
    (tmp_path / "data/items.csv").write_text("sku,name,brand\n" + shelf, encoding="utf-8")
    given = [f"tables.{key}={value}" for key, value in tables_config.model_dump(mode="json", exclude_none=True).items()]
    given += [f"prepare.{name}.path={tmp_path}/data/{name}.csv" for name in ("interactions", "items")]
    assert job.main(["--config", str(JOB.parents[1] / "conf/own.yaml"), *given, "tables.metastore=null"]) == 0
    assert {row.title: row.brand for row in tables.read("items").collect()} == {
        f"名 {place}": f"brand {place % 2}" for place in range(4)
    }
    rows = tables.read("interactions").collect()
    assert {(row.event, row.value, row.is_liked) for row in rows} == {("view", 1.0, False), ("buy", 3.0, True)}
    assert {row.split for row in rows} == set(c.SPLITS)


def test_a_source_of_delta_is_named_with_the_version_that_was_read(
    job: ModuleType, config: Any, tables: Tables, tmp_path: Path
) -> None:
    frame = tables.spark.createDataFrame([("u", f"i{place}") for place in range(9)], "user_id string, item_id string")
    frame.write.format("delta").save(str(tmp_path / "log"))
    frame.limit(1).write.format("delta").mode("append").save(str(tmp_path / "log"))
    path = config({"interactions": ""})
    own = [f"prepare.interactions.path={tmp_path / 'log'}", "prepare.interactions.format=delta"]
    assert job.main(["--config", path, *own]) == 0
    (record,) = tables.read("runs").collect()
    assert record.inputs["interactions"] == f"{tmp_path / 'log'}@1"


def test_tables_are_not_written_among_the_files_that_are_read(
    job: ModuleType, config: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = config({"interactions": "user_id,item_id\nu,i\n"})
    place = tmp_path / "tables/interactions/log.csv"
    assert job.main(["--config", path, f"prepare.interactions.path={place}"]) == 2
    assert (
        f"prepare.interactions.path: got {place}, where the table interactions has its place" in capsys.readouterr().err
    )
