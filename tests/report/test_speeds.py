"""Speed and quality out of earlier runs: which are comparable, and which of several counts."""

from __future__ import annotations

from typing import Any

from pyspark.sql import DataFrame, SparkSession

from flmrec_spark.report.speeds import Speed, collect_speeds, speeds

INPUTS = {"interactions": "2", "items": "0", "users": "0"}


Row = dict[str, Any]


def run(job: str, run_id: str, checkpoint: str, join: str = "layer", join_layer: object = 0, **of_run: Any) -> Row:
    config = f"model: {{join: {join}, join_layer: {join_layer}}}"
    inputs = {**INPUTS, "checkpoint": checkpoint} | of_run.pop("inputs", {})
    return {"job": job, "run_id": run_id, "inputs": inputs, "config": config, "counts": {}, "seconds": {}, **of_run}


def scored(run_id: str, checkpoint: str, seconds: float) -> Row:
    counts = {"users": 10, "items": 500, "pairs": 2000}  # the users were asked about some of the items
    return run("score", run_id, checkpoint, counts=counts, seconds={"score": seconds, "audit": 9.0})


RUNS = [
    scored("s1", "slow", 20.0),
    scored("s2", "fast", 2.0),
    scored("s3", "fast", 1.0),
    run("score", "s4", "fast", counts={"users": 10, "items": 500}, seconds={"score": 0.01}),  # what was staged before
    {**scored("s5", "none", 0.1), "inputs": INPUTS},  # lists of a baseline
    run("evaluate", "e0", "slow", join_layer=0),
    run("evaluate", "e1", "slow", join_layer=0),
    run("evaluate", "e2", "fast", join="attention"),
    run("evaluate", "e3", "never scored", join_layer=3),
    run("evaluate", "e4", "fast", join_layer="last", inputs={"interactions": "1"}),
    {**scored("s6", "slow", 0.1), "config": "score: {strategy: hybrid}"},  # its seconds are those of other models too
    {**scored("s7", "slow", 0.1), "inputs": {**INPUTS, "items": "9", "checkpoint": "slow"}},  # another catalogue
]
QUALITIES = {"e0": 0.5, "e1": 0.6, "e2": 0.59, "e3": 0.7, "e4": 0.9}


def test_each_join_has_its_fastest_scoring_and_its_latest_evaluation_on_the_same_tables() -> None:
    assert speeds(RUNS, QUALITIES, inputs=INPUTS) == [Speed("layer 0", 100.0, 0.6), Speed("attention", 2000.0, 0.59)]


def test_one_join_alone_is_no_comparison() -> None:
    assert speeds(RUNS[:6], QUALITIES, inputs=INPUTS) == []
    assert speeds(RUNS, {"e1": 0.6}, inputs=INPUTS) == []
    assert speeds([], {}, inputs=INPUTS) == []


def test_the_join_is_the_checkpoints_not_what_the_config_says() -> None:
    told = [{**one, "versions": {"join": "layer 5"}} if one["run_id"] == "e2" else one for one in RUNS]
    assert [one.name for one in speeds(told, QUALITIES, inputs=INPUTS)] == ["layer 0", "layer 5"]
    bare = [{**one, "config": ""} if one["run_id"] == "e2" else one for one in RUNS]
    assert [one.name for one in speeds(bare, QUALITIES, inputs=INPUTS)] == ["layer 0", "layer last"]


def test_the_run_that_asks_counts_before_and_after_it_is_in_the_table(spark: SparkSession) -> None:
    def frames(rows: list[Row]) -> tuple[DataFrame, DataFrame]:
        times = [{**row, "started_at": place, "verdict": "done", "versions": {}} for place, row in enumerate(rows)]
        measured = [
            {"model": "flm", "metric": "uauc", "segment": "all", "split": "test", "run_id": name, "value": value}
            for name, value in QUALITIES.items()
        ]
        schema = (
            "job string, run_id string, inputs map<string,string>, config string, counts map<string,long>, "
            "seconds map<string,double>, started_at int, verdict string, versions map<string,string>"
        )
        return spark.createDataFrame(times, schema), spark.createDataFrame(measured)

    last = RUNS[7]
    own = {"job": "evaluate", "run_id": "e2", "inputs": last["inputs"], "versions": {"join": "attention"}}
    before, after = (
        collect_speeds(*frames(rows), own=own, model="flm", split="test") for rows in ([*RUNS[:7], *RUNS[8:]], RUNS)
    )
    assert before == after
    assert [one.name for one in before] == ["layer 0", "attention"]
