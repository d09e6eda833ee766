"""Are the baselines as good as they can be? Settings of each, chosen on the valid split and told on the test split.

    python benchmarks/baselines.py --config conf/movielens.yaml [--only ease als] [--json FILE] [key=value ...]

Reads the prepared tables (`spark-submit jobs/prepare.py --config ...`). Every setting is fitted on train and judged on
valid, and fitted on train and valid and judged on test: lists by NDCG@10 over the users who went on to like something
that they had not met, ratings by AUC and UAUC. `is_default` marks what `jobs/evaluate.py` uses, `is_best` what valid
would choose.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import SparkSession

from flmrec_spark import columns as c
from flmrec_spark import metrics, ranking
from flmrec_spark.config import TablesConfig, load_config
from flmrec_spark.lm.machine import describe, show, write
from flmrec_spark.lm.prepared import read_tables
from flmrec_spark.measuring import HISTORY_SPLITS
from flmrec_spark.session import session
from flmrec_spark.stages.baselines import als, logistic, neighbours
from flmrec_spark.stages.baselines.collect import world_of_tables
from flmrec_spark.stages.baselines.world import Baseline, User, World

K = 10
Row = dict[str, Any]
Fit = Callable[..., Baseline]

SETTINGS: Mapping[str, Mapping[str, Sequence[float]]] = {
    "ease": {"ridge": (25.0, 50.0, 100.0, 200.0, 400.0, 800.0, 1600.0)},
    "item_knn": {"neighbours": (20, 50, 100, 200, 400), "shrinkage": (0.0, 20.0, 100.0)},
    "als": {
        "rank": (32, 64),
        "iterations": (5, 9),
        "regularisation": (0.03, 0.1, 0.3),
        "confidence": (1.0, 4.0, 16.0),
    },
    "logistic_regression": {"penalty": (0.1, 0.3, 1.0, 3.0)},
}
DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "ease": {"ridge": neighbours.RIDGE},
    "item_knn": {"neighbours": neighbours.NEIGHBOURS, "shrinkage": neighbours.COSINE_SHRINKAGE},
    "als": {
        "rank": als.RANK,
        "iterations": als.ITERATIONS,
        "regularisation": als.REGULARISATION,
        "confidence": als.CONFIDENCE,
    },
    "logistic_regression": {"penalty": logistic.PENALTY},
}


class Split:
    """The held-out rows of a split, and what the baselines may know before."""

    def __init__(self, tables: Mapping[str, pa.Table], split: str) -> None:
        rows = tables["interactions"]
        own = rows.filter(pc.is_in(rows[c.SPLIT], pa.array(HISTORY_SPLITS[split])))
        users = tables["users"]
        known = users.filter(pc.is_in(users[c.USER_ID], own[c.USER_ID].combine_chunks()))
        self.world: World = world_of_tables(own, tables["items"], known)
        asked = rows.filter(pc.equal(rows[c.SPLIT], split)).sort_by(
            [(c.USER_ID, "ascending"), (c.ITEM_ID, "ascending")]
        )
        place = {item: at for at, item in enumerate(self.world.item_ids)}
        self.users, codes = np.unique(asked[c.USER_ID].to_pylist(), return_inverse=True)
        self.codes, self.items = codes, np.array([place[item] for item in asked[c.ITEM_ID].to_pylist()])
        self.labels = asked[c.IS_LIKED].to_numpy(zero_copy_only=False)
        history = self._histories()
        fields = {row[c.USER_ID]: row for row in users.to_pylist()}
        self.asked = [
            User(user, *history.get(user, (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool))), fields[user])
            for user in self.users.tolist()
        ]

    def _histories(self) -> dict[str, tuple[Any, Any]]:
        """Places and likes of each user, newest first."""
        world = self.world
        starts = np.flatnonzero(np.diff(world.users, prepend=-1))
        ends = [*starts[1:].tolist(), len(world.users)]
        return {
            world.user_ids[world.users[start]]: (world.items[start:end][::-1], world.liked[start:end][::-1])
            for start, end in zip(starts.tolist(), ends, strict=True)
        }

    def judged(self, fitted: Baseline) -> dict[str, float]:
        """NDCG@10 of the lists; AUC and UAUC of the held-out rows. A user of whom nothing is known has no list."""
        n_items = len(self.world.item_ids)
        lists, relevant, scores = [], [], np.zeros(len(self.items))
        for code, user in enumerate(self.asked):
            own = np.flatnonzero(self.codes == code)
            said = fitted.scores(user)
            is_left = np.ones(n_items, dtype=bool)
            is_left[user.items] = False
            liked = self.items[own][self.labels[own]]
            relevant.append(np.unique(liked[is_left[liked]]))
            lists.append(np.zeros(0, dtype=int) if said is None else ranking.best(said, K, allowed=is_left))
            scores[own] = 0.0 if said is None else said[self.items[own]]
        return {
            "ndcg": float(np.nanmean(ranking.ndcg(lists, relevant, k=K))),
            "auc": metrics.auc(self.labels, scores),
            "uauc": metrics.uauc(self.codes, self.labels, scores),
        }


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    config = load_config(arguments.config, arguments.overrides)
    tables = read_tables(config.tables.root).tables
    splits = {split: Split(tables, split) for split in (c.VALID, c.TEST)}
    rows = list[Row]()
    for name in arguments.only or SETTINGS:
        rows += _of_baseline(name, splits)
    machine = describe("cpu")
    write(arguments.json, machine, rows)
    show(
        f"{machine['cpu']}: chosen on valid, told on test", [row for row in rows if row["is_best"] or row["is_default"]]
    )
    return 0


def _of_baseline(name: str, splits: Mapping[str, Split]) -> list[Row]:
    fits: Mapping[str, Fit] = {
        "ease": neighbours.ease,
        "item_knn": neighbours.item_knn,
        "als": lambda world, **own: als.als(world, _spark(), **own),
        "logistic_regression": logistic.logistic_regression,
    }
    judge = "uauc" if name == "logistic_regression" else "ndcg"
    rows = []
    for values in itertools.product(*SETTINGS[name].values()):
        own = dict(zip(SETTINGS[name], values, strict=True))
        row: Row = {"name": name, "setting": ", ".join(f"{key} {value:g}" for key, value in own.items())}
        row |= {"is_default": own == dict(DEFAULTS[name])}
        for split, asked in splits.items():
            row |= {
                f"{split}_{metric}": value for metric, value in asked.judged(fits[name](asked.world, **own)).items()
            }
        rows.append(row)
        print(row["name"], row["setting"], f"valid {row[f'{c.VALID}_{judge}']:.4f}", file=sys.stderr, flush=True)
    best = max(rows, key=lambda row: row[f"{c.VALID}_{judge}"])
    return [{**row, "is_best": row is best} for row in rows]


def _spark() -> SparkSession:
    return session(TablesConfig(root=None), app_name="flmrec baselines")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="baselines.py", description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, metavar="FILE", help="of the prepared tables")
    parser.add_argument("--only", nargs="+", choices=tuple(SETTINGS), help="names of baselines")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings over those of the file")
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
