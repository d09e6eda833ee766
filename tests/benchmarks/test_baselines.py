"""benchmarks/baselines.py on a tiny world: every setting is told, and what valid chooses is the best of valid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import baselines
from flmrec_spark import columns as c
from flmrec_spark.lm.prepared import read_tables
from tests.prepared import write_prepared
from tests.world import write_config

SETTINGS = {"ease": {"ridge": (1.0, 200.0, 1e6)}, "logistic_regression": {"penalty": (0.01, 1.0)}}


def test_the_best_of_valid_and_the_default_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_prepared(tmp_path / "tables")
    config = write_config(tmp_path)
    monkeypatch.setattr(baselines, "SETTINGS", SETTINGS)
    file = tmp_path / "rows.json"
    assert baselines.main(["--config", str(config), "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [(row["name"], row["setting"]) for row in rows] == [
        *(("ease", f"ridge {value:g}") for value in (1.0, 200.0, 1e6)),
        *(("logistic_regression", f"penalty {value:g}") for value in (0.01, 1.0)),
    ]
    for name, judge in (("ease", "valid_ndcg"), ("logistic_regression", "valid_uauc")):
        own = [row for row in rows if row["name"] == name]
        (best,) = (row for row in own if row["is_best"])
        assert best[judge] == max(row[judge] for row in own)
        assert sum(row["is_default"] for row in own) == 1
    assert "chosen on valid, told on test" in capsys.readouterr().out


def test_a_list_holds_nothing_that_was_met_and_a_perfect_one_has_an_ndcg_of_one(tmp_path: Path) -> None:
    write_prepared(tmp_path / "tables")
    split = baselines.Split(read_tables(str(tmp_path / "tables")).tables, c.VALID)

    class Oracle:
        is_probability = False

        def __init__(self, sign: int) -> None:
            self.sign = sign

        def scores(self, user: baselines.User) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
            own = split.codes == split.users.tolist().index(user.user_id)
            found = np.zeros(len(split.world.item_ids))
            found[user.items] = 9.0  # what was met would stand first
            found[split.items[own & split.labels]] = 5.0 * self.sign
            return found

    assert split.judged(Oracle(1)) == {"ndcg": 1.0, "auc": 1.0, "uauc": 1.0}
    told = split.judged(Oracle(-1))
    assert (told["auc"], told["uauc"]) == (0.0, 0.0) and told["ndcg"] < 0.5  # behind the six others that are left
