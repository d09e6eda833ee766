"""The printed tables of an evaluation: what stands in them, and that they fit."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from flmrec_spark.report.console import WIDTH, report
from flmrec_spark.stages.measurements import Answers, measure, pairs
from flmrec_spark.stages.segments import HEAD, HeldOut

MODELS = ("flm", "popularity", "item_mean", "user_mean", "user_item_mean", *(f"another_{n}" for n in range(6)))


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """50 users with one liked and one disliked row each; flm always right, the others by chance or less."""
    random = np.random.default_rng(1)
    users, labels = np.repeat(np.arange(50), 2), np.tile([True, False], 50)
    hit, miss = np.full((50, 1), HEAD + 1), np.zeros((50, 1), dtype=int)
    right, chance = np.tile([0.9, 0.2], 50), random.random(100)
    answers = [
        Answers("flm", right, right, hit, {}, {("coverage", 1): 0.4}),
        Answers("popularity", chance, None, miss, {}, {("coverage", 1): 0.1}),
        Answers("item_mean", right, 1 - right, hit, {}, {("coverage", 1): 0.2}),
        Answers("user_mean", chance, chance, None, {}, {}),
        Answers("user_item_mean", 1 - right, chance, miss, {}, {("coverage", 1): 0.1}),
        *(Answers(model, chance, chance, miss, {}, {}) for model in MODELS[5:]),
    ]
    world = HeldOut(users, labels, np.full(100, HEAD), np.tile([0, 0, 1], (50, 1)), np.ones(50, dtype=int))
    found = measure(world, answers, cutoffs=[1], compared=pairs(MODELS, "item_mean"), n_resamples=50, seed=1)
    console = Console(width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(report(found, models=MODELS, title="a run"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def cells(lines: list[str], *starts: str) -> list[str]:
    """The row of the differences that starts so."""
    rows = [[cell.strip() for cell in line.split("│")] for line in lines if "│" in line]
    return next(row for row in rows if tuple(row[: len(starts)]) == starts)


def values(lines: list[str], model: str) -> list[str]:
    """The model's row in the first table, bold values with a star."""
    starred = [re.sub(r"\x1b\[1m( *)", r"\1*", line) for line in lines]
    rows = [Text.from_ansi(line).plain.split() for line in starred]
    return next(row[1:] for row in rows if row[:1] == [model] and len(row) > 4)


def test_the_report_fits_its_width_with_every_value_whole(lines: list[str]) -> None:
    plain = [Text.from_ansi(line).plain for line in lines]
    assert max(map(len, plain)) <= WIDTH
    assert not any("…" in line for line in plain)
    assert ["model", "auc", "uauc", "log_loss", "ece", "ndcg@1", "coverage@1"] in [line.split() for line in plain]


def test_the_best_of_a_column_is_bold_and_log_loss_is_best_when_lowest(lines: list[str]) -> None:
    assert [cell.startswith("*") for cell in values(lines, "flm")] == [True] * 6
    # as good as flm at order, not at probabilities, and coverage half
    assert [cell.startswith("*") for cell in values(lines, "item_mean")] == [True, True, False, False, True, False]
    assert [cell.startswith("*") for cell in values(lines, "popularity")] == [False] * 6
    assert values(lines, "flm")[5] == "*0.400"


def test_under_the_first_stand_its_intervals(lines: list[str]) -> None:
    plain = [Text.from_ansi(line).plain.split() for line in lines]
    place = next(number for number, row in enumerate(plain) if row[:1] == ["flm"])
    assert plain[place + 1][:2] == ["1.000–1.000", "1.000–1.000"]


def test_what_a_baseline_cannot_answer_is_a_dash(lines: list[str]) -> None:
    assert values(lines, "popularity")[2:4] == ["–", "–"]
    assert values(lines, "user_mean")[4:] == ["–", "–"]


def test_differences_say_who_is_better(lines: list[str]) -> None:
    assert cells(lines, "auc", "user_item_mean")[2:] == ["+1.0000", "+1.0000 .. +1.0000", "better"]
    assert cells(lines, "uauc", "item_mean")[4] == "within noise"
    assert cells(lines, "log_loss", "item_mean")[4] == "better"
    assert cells(lines, "ndcg@1", "popularity")[4] == "better"


def test_what_diversity_costs_stands_in_a_table_of_its_own() -> None:
    users, labels = np.repeat(np.arange(50), 2), np.tile([True, False], 50)
    right, n_hits = np.tile([0.9, 0.2], 50), np.arange(50) < 20
    hit, fewer = np.tile([[HEAD + 1, 0]], (50, 1)), (n_hits * (HEAD + 1))[:, None]
    wide = {("diversity", k): np.full(50, 0.9) for k in (1, 2)}
    answers = [
        Answers("flm", right, right, hit, {("diversity", k): np.full(50, 0.5) for k in (1, 2)}, {("coverage", 1): 0.1}),
        Answers("popularity", right, None, hit, {}, {}),
        Answers("flm_diverse", None, None, fewer, {("diversity", 1): wide["diversity", 1]}, {("coverage", 1): 0.25}),
    ]
    world = HeldOut(users, labels, np.full(100, HEAD), np.tile([0, 1, 0], (50, 1)), np.ones(50, dtype=int))
    compared = [*pairs(("flm", "popularity"), "popularity"), ("flm_diverse", "flm")]
    found = measure(world, answers, cutoffs=[1, 2], compared=compared, n_resamples=50, seed=1)
    console = Console(width=WIDTH, file=io.StringIO())
    console.print(report(found, models=["flm", "popularity"], title="a run", diverse={"flm_diverse": "flm"}))
    assert isinstance(console.file, io.StringIO)
    plain = console.file.getvalue().splitlines()
    assert "flm_diverse beside flm, same users" in [line.strip() for line in plain]
    assert cells(plain, "recall@1")[1:4] == ["1.000", "0.400", "-0.6000"]
    assert cells(plain, "recall@1")[5] == "worse"
    assert cells(plain, "diversity@1")[1:4] == ["0.500", "0.900", "+0.4000"]
    assert cells(plain, "coverage@1")[1:4] == ["0.100", "0.250", ""]
    assert not any(line.strip().startswith("ndcg@2") and "0.900" in line for line in plain)


def test_small_values_keep_three_digits_and_a_run_may_be_called_anything() -> None:
    random = np.random.default_rng(3)
    hit = np.zeros((400, 1), dtype=int)
    hit[7] = HEAD + 1
    labels, scores = np.tile([True, False], 400), random.random(800)
    answers = [Answers(model, scores, scores, hit, {}, {("coverage", 1): 0.00042}) for model in ("flm", "popularity")]
    users, relevant = np.repeat(np.arange(400), 2), np.tile([0, 0, 1], (400, 1))
    world = HeldOut(users, labels, np.full(800, HEAD), relevant, np.ones(400, dtype=int))
    compared = pairs(("flm", "popularity"), "popularity")
    found = measure(world, answers, cutoffs=[1], compared=compared, n_resamples=20, seed=1)
    console = Console(width=WIDTH, file=io.StringIO())
    console.print(report(found, models=("flm", "popularity"), title="night[a] [/b]"))
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "night[a] [/b]" in printed
    assert values(printed.splitlines(), "popularity")[4:] == ["0.00250", "0.000420"]
