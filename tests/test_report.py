"""The printed tables of an evaluation: what stands in them, and that they fit."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from flmrec_spark.report import WIDTH, report
from flmrec_spark.stages.evaluation import ALL, Answers, HeldOut, measure

MODELS = ("flm", "popularity", "item_mean", "user_mean", "user_item_mean")


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """50 users with one liked and one disliked row each; flm always right, the others by chance or less."""
    random = np.random.default_rng(1)
    users, labels = np.repeat(np.arange(50), 2), np.tile([True, False], 50)
    everyone = np.ones(50, dtype=bool)
    right, chance = np.tile([0.9, 0.2], 50), random.random(100)
    answers = [
        Answers("flm", right, right, everyone[:, None], {1: 4}),
        Answers("popularity", chance, None, ~everyone[:, None], {1: 1}),
        Answers("item_mean", right, 1 - right, everyone[:, None], {1: 2}),
        Answers("user_mean", chance, chance, None, {}),
        Answers("user_item_mean", 1 - right, chance, ~everyone[:, None], {1: 1}),
    ]
    world = HeldOut(users, labels, np.ones(50, dtype=int), {ALL: everyone})
    found = measure(world, answers, cutoffs=[1], n_items=10, n_resamples=50, seed=1)
    console = Console(width=200, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(report(found, models=MODELS, title="a run"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def cells(lines: list[str], *starts: str) -> list[str]:
    rows = [[cell.strip() for cell in line.split("│")] for line in lines if "│" in line]
    return next(row for row in rows if tuple(row[: len(starts)]) == starts)


def test_the_report_fits_its_width(lines: list[str]) -> None:
    assert max(Text.from_ansi(line).cell_len for line in lines) <= WIDTH


def test_the_best_of_a_row_is_bold_and_log_loss_is_best_when_lowest(lines: list[str]) -> None:
    auc, log_loss = cells(lines, "auc"), cells(lines, "log_loss")
    assert [("\x1b[1m" in cell) for cell in auc[1:]] == [True, False, False, True, False, False]
    assert [("\x1b[1m" in cell) for cell in log_loss[1:]] == [True, False, False, False, False, False]
    assert cells(lines, "coverage@1")[1].endswith("0.4000\x1b[0m")


def test_what_a_baseline_cannot_answer_is_a_dash(lines: list[str]) -> None:
    assert cells(lines, "log_loss")[3] == "–"
    assert cells(lines, "ndcg@1")[5] == "–"


def test_differences_say_who_is_better(lines: list[str]) -> None:
    assert cells(lines, "auc", "user_item_mean")[2:] == ["+1.0000", "+1.0000 .. +1.0000", "better"]
    assert cells(lines, "uauc", "item_mean")[4] == "within noise"
    assert cells(lines, "log_loss", "item_mean")[4] == "better"
    assert cells(lines, "ndcg@1", "popularity")[4] == "better"
