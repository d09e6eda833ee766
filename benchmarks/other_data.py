"""Makes two logs of other shapes from MovieLens-100K, for benchmarks/quality.py with shop.yaml and labels.yaml.

    python benchmarks/other_data.py [--data build/demo/data] [--folder build/other]

`shop.csv`, a log of behaviour: every rating is a view, and one of 4 or 5 a purchase as well, a minute later.
`labels.csv`, labels without a time: 1 for a rating of 4 or 5, else 0, with a column that says train, valid or test: the
oldest 80 %, the next 10 % and the newest 10 % of all ratings, so that many users of test have nothing in train.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from flmrec_spark import files
from flmrec_spark.errors import InputError

LIKED = 4.0
MINUTE = 60
NAMES = {"user_id:token": "member", "item_id:token": "sku", "rating:float": "rating", "timestamp:float": "timestamp"}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="other_data.py", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("build/demo/data"), help="of scripts/fetch_movielens.py")
    parser.add_argument("--folder", type=Path, default=Path("build/other"), help="where the logs are written")
    arguments = parser.parse_args(argv)
    source = arguments.data / "ml-100k" / "ml-100k.inter"
    if not source.is_file():
        raise InputError(f"--data: {source}: not found; run scripts/fetch_movielens.py first")
    ratings = pd.read_csv(source, sep="\t").rename(columns=NAMES)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, log in (("shop", shop(ratings)), ("labels", labels(ratings))):
        file = arguments.folder / f"{name}.csv"
        files.write(file, log.to_csv(index=False), flag="--folder")
        print(f"{file}: {len(log):,} rows")
    return 0


def shop(ratings: pd.DataFrame) -> pd.DataFrame:
    """member, sku, event, timestamp, by time."""
    views = ratings.assign(event="view")
    bought = ratings[ratings["rating"] >= LIKED]
    purchases = bought.assign(event="purchase", timestamp=bought["timestamp"] + MINUTE)
    log = pd.concat([views, purchases]).sort_values(["timestamp", "member", "sku"], kind="stable")
    return log[["member", "sku", "event", "timestamp"]]


def labels(ratings: pd.DataFrame) -> pd.DataFrame:
    """member, sku, label, split, in an order that says nothing of time."""
    oldest_first = ratings.sort_values(["timestamp", "member", "sku"], kind="stable")
    share = np.arange(len(oldest_first)) / len(oldest_first)
    split = np.select([share < 0.8, share < 0.9], ["train", "valid"], "test")
    label = (oldest_first["rating"] >= LIKED).astype(int)
    return oldest_first.assign(label=label, split=split).sort_values(["member", "sku"])[
        ["member", "sku", "label", "split"]
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
