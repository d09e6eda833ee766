"""benchmarks/market.py: what its files say of the world that they are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import market
from flmrec_spark.config import load_config
from flmrec_spark.errors import InputError

CONFIG = Path(__file__).parent.parent.parent / "benchmarks" / "market.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("market")
    assert market.main(["--visitors", "80", "--products", "60", "--looks", "900", "--folder", str(made)]) == 0
    return made


def test_what_is_bought_was_in_a_cart_and_what_was_in_a_cart_was_viewed(folder: Path) -> None:
    log = pd.read_csv(folder / "events.csv")
    assert log["timestamp"].is_monotonic_increasing
    first = log.groupby(["visitorid", "itemid", "event"])["timestamp"].min().unstack()
    for earlier, later in (("view", "addtocart"), ("addtocart", "transaction")):
        taken = first.dropna(subset=[later])
        assert len(taken) and (taken[earlier] < taken[later]).all()
    counts = log["event"].value_counts()
    assert counts["view"] > 900 > counts["addtocart"] > counts["transaction"] > 0


def test_every_id_has_a_text_and_the_config_names_the_columns(folder: Path) -> None:
    log, products, visitors = (pd.read_csv(folder / f"{name}.csv") for name in ("events", "products", "visitors"))
    assert set(log["itemid"]) <= set(products["itemid"]) and set(log["visitorid"]) <= set(visitors["visitorid"])
    chinese = products["title"].str.contains("[一-鿿]")
    assert 0.3 < chinese.mean() < 0.7
    prepare = load_config(CONFIG).prepare
    assert set(prepare.event_values) == set(log["event"])
    for source, table in ((prepare.interactions, log), (prepare.items, products), (prepare.users, visitors)):
        assert source is not None and set(source.columns.values()) <= set(table.columns)


def test_a_seed_is_a_market(folder: Path, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        own = str(tmp_path / seed)
        market.main(["--visitors", "80", "--products", "60", "--looks", "900", "--seed", seed, "--folder", own])
    for name in ("events", "products", "visitors"):
        text = (folder / f"{name}.csv").read_bytes()
        assert (tmp_path / "1" / f"{name}.csv").read_bytes() == text != (tmp_path / "2" / f"{name}.csv").read_bytes()


def test_nobody_looks_before_they_came_nor_at_what_is_not_there_yet() -> None:
    random = np.random.default_rng(3)
    products, visitors = market.made_products(random, 40), market.made_visitors(random, 30)
    looks = market.made_looks(random, visitors, products, 500)
    assert (visitors.arrived[looks["visitor"]] <= looks["day"]).all()
    assert (products.launched[looks["product"]] <= looks["day"]).all()
    assert looks["taken"].mean() == pytest.approx(looks["likes"].mean(), abs=0.08)


def test_the_ceiling_is_the_auc_of_the_true_probabilities_in_the_newest_tenth() -> None:
    likes = [0.1] * 36 + [0.9, 0.2, 0.6, 0.4]  # of the last four: 0.9 and 0.4 taken, 0.2 and 0.6 not
    looks = pd.DataFrame({"likes": likes, "taken": [False] * 36 + [True, False, False, True]})
    assert market.ceiling(looks) == pytest.approx(3 / 4)
    assert np.isnan(market.ceiling(looks.head(3)))


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(InputError, match="expected numbers of 1 or more"):
        market.main(["--products", "0"])
