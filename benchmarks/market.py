"""Makes a market from a seed, for benchmarks/quality.py with market.yaml: behaviour, and texts that mean something.

    python benchmarks/market.py [--visitors 6000] [--products 2500] [--looks 60000] [--folder build/other/market]

`events.csv` has view, addtocart and transaction with a time in milliseconds and no rating; `products.csv` titles, half
of them Chinese, half English; `visitors.csv` an age and a city. A visitor looks at what lies in a category of their
taste, popular products and brands that they like first, and takes some of it: for the product's own quality, for the
brand, for a price near theirs. No visitor takes more of what is looked at than another for any other reason. Products
and visitors appear over time. What is printed last is how well the true probabilities tell what is taken in the newest
tenth: no model can be better than that by more than chance.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from flmrec_spark import files
from flmrec_spark.errors import InputError

KINDS = {
    "耳机": "headphones", "键盘": "keyboard", "台灯": "desk lamp", "水壶": "kettle", "毛衣": "sweater",
    "跑鞋": "running shoes", "背包": "backpack", "帐篷": "tent", "茶叶": "tea", "咖啡": "coffee",
    "小说": "novel", "菜谱": "cookbook", "积木": "building blocks", "拼图": "jigsaw puzzle", "面霜": "face cream",
    "雨伞": "umbrella", "手表": "watch", "吉他": "guitar", "画笔": "paint brush", "花盆": "flower pot",
}  # fmt: skip
QUALITIES = {
    "轻便": "light", "经典": "classic", "防水": "waterproof", "迷你": "mini", "手工": "handmade", "环保": "green",
}  # fmt: skip
BRANDS = {
    "青山": "Greenhill", "云帆": "Cloudsail", "北辰": "Northstar", "海燕": "Petrel", "松石": "Turquoise",
    "白鹿": "Whitedeer", "长河": "Longriver", "金叶": "Goldleaf", "明月": "Brightmoon", "远山": "Farmount",
}  # fmt: skip
AGES, CITIES = ("18-24", "25-34", "35-49", "50+"), ("北京", "成都", "Berlin", "Lagos")
DAYS, DAY, MINUTE = 90, 86_400_000, 60_000
START = 1_700_000_000_000  # milliseconds since 1970
PRICES = 5
CHUNK = 4096


@dataclass(frozen=True)
class Products:
    kind: np.ndarray
    brand: np.ndarray
    price: np.ndarray
    quality: np.ndarray
    popularity: np.ndarray
    launched: np.ndarray  # day


@dataclass(frozen=True)
class Visitors:
    kinds: np.ndarray  # [visitors, kinds], the share of looks
    brands: np.ndarray  # [visitors, brands], log-odds
    price: np.ndarray
    age: np.ndarray
    arrived: np.ndarray  # day
    activity: np.ndarray


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="market.py", description=__doc__.split("\n")[0])
    for name, default in (("visitors", 6_000), ("products", 2_500), ("looks", 60_000), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, default=Path("build/other/market"), help="where the files are written")
    arguments = parser.parse_args(argv)
    if min(arguments.visitors, arguments.products, arguments.looks) < 1:
        raise InputError("--visitors, --products, --looks: expected numbers of 1 or more")
    random = np.random.default_rng(arguments.seed)
    products, visitors = made_products(random, arguments.products), made_visitors(random, arguments.visitors)
    looks = made_looks(random, visitors, products, arguments.looks)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    cities = random.choice(CITIES, arguments.visitors)
    tables = {
        "events": events(random, looks),
        "products": texts(random, products),
        "visitors": pd.DataFrame(
            {"visitorid": np.arange(arguments.visitors), "age": np.take(AGES, visitors.age), "city": cities}
        ),
    }
    for name, table in tables.items():
        file = arguments.folder / f"{name}.csv"
        files.write(file, table.to_csv(index=False), flag="--folder")
        print(f"{file}: {len(table):,} rows")
    print(f"AUC of the true probabilities in the newest tenth: {ceiling(looks):.3f}")
    return 0


def made_products(random: np.random.Generator, n: int) -> Products:
    return Products(
        kind=random.integers(len(KINDS), size=n),
        brand=random.integers(len(BRANDS), size=n),
        price=random.integers(1, PRICES + 1, size=n),
        quality=random.normal(scale=0.8, size=n),
        popularity=random.permutation(-0.8 * np.log(np.arange(n) + 5.0)),
        launched=np.where(random.random(n) < 0.7, 0, random.integers(DAYS, size=n)),
    )


def made_visitors(random: np.random.Generator, n: int) -> Visitors:
    """Ages share a taste for kinds; brands and prices are each visitor's own."""
    shared = random.dirichlet(np.full(len(KINDS), 0.5), size=len(AGES))
    age = random.integers(len(AGES), size=n)
    return Visitors(
        kinds=0.5 * shared[age] + 0.5 * random.dirichlet(np.full(len(KINDS), 0.15), size=n),
        brands=random.normal(size=(n, len(BRANDS))),
        price=random.integers(1, PRICES + 1, size=n),
        age=age,
        arrived=np.where(random.random(n) < 0.6, 0, random.integers(DAYS, size=n)),
        activity=random.lognormal(sigma=1.0, size=n),
    )


def made_looks(random: np.random.Generator, visitors: Visitors, products: Products, n: int) -> pd.DataFrame:
    """visitor, product, time, likes (the true probability that it is taken), taken; one row per look, by time."""
    visitor = random.choice(len(visitors.age), size=n, p=visitors.activity / visitors.activity.sum())
    day = visitors.arrived[visitor] + random.random(n) * (DAYS - visitors.arrived[visitor])
    spread = np.cumsum(visitors.kinds[visitor], axis=1)
    kind = (random.random((n, 1)) * spread[:, -1:] < spread).argmax(axis=1)
    product = np.full(n, -1)
    for wanted in range(len(KINDS)):
        shelf = np.flatnonzero(products.kind == wanted)
        rows = np.flatnonzero(kind == wanted)
        for own in np.split(rows, range(CHUNK, len(rows), CHUNK)) if len(shelf) else ():
            seen = products.popularity[shelf] + 0.5 * visitors.brands[visitor[own]][:, products.brand[shelf]]
            seen = np.where(products.launched[shelf] <= day[own, None], seen, -np.inf)
            drawn = shelf[(seen + random.gumbel(size=seen.shape)).argmax(axis=1)]
            product[own] = np.where(np.isfinite(seen).any(axis=1), drawn, -1)
    looks = pd.DataFrame({"visitor": visitor, "product": product, "day": day})[product >= 0]
    visitor, product = looks["visitor"].to_numpy(), looks["product"].to_numpy()
    distance = np.abs(visitors.price[visitor] - products.price[product])
    log_odds = -0.6 + products.quality[product] + visitors.brands[visitor, products.brand[product]] - 0.5 * distance
    likes = 1 / (1 + np.exp(-log_odds))
    time = (START + looks["day"] * DAY).astype("int64")
    found = looks.assign(time=time, likes=likes, taken=random.random(len(looks)) < likes)
    return found.sort_values("time", kind="stable").reset_index(drop=True)


def events(random: np.random.Generator, looks: pd.DataFrame) -> pd.DataFrame:
    """timestamp, visitorid, event, itemid: one to four views a look; what is taken is put in a cart, half is bought."""
    views = looks.loc[looks.index.repeat(np.minimum(random.geometric(0.6, len(looks)), 4))]
    late = views.groupby(level=0).cumcount() * MINUTE
    taken = looks[looks["taken"]]
    bought = taken[random.random(len(taken)) < 0.5]
    steps = (
        views.assign(event="view", time=views["time"] + late),
        taken.assign(event="addtocart", time=taken["time"] + 5 * MINUTE),
        bought.assign(event="transaction", time=bought["time"] + 9 * MINUTE),
    )
    log = pd.concat(steps).sort_values("time", kind="stable")
    names = {"time": "timestamp", "visitor": "visitorid", "product": "itemid"}
    return log.rename(columns=names)[["timestamp", "visitorid", "event", "itemid"]]


def texts(random: np.random.Generator, products: Products) -> pd.DataFrame:
    """itemid, title, price; the title names quality, brand and kind, in Chinese for half of the products."""
    rows = []
    for at, (kind, brand, price) in enumerate(zip(products.kind, products.brand, products.price, strict=True)):
        words = (list(BRANDS.items())[brand], random.choice(list(QUALITIES.items())), list(KINDS.items())[kind])
        chinese, english = zip(*words, strict=True)
        title = "".join(chinese) if random.random() < 0.5 else " ".join(english)
        rows.append({"itemid": at, "title": title, "price": "¥" * price})
    return pd.DataFrame(rows)


def ceiling(looks: pd.DataFrame) -> float:
    """AUC of the true probabilities over the newest tenth of the looks, or NaN where all are alike."""
    newest = looks.tail(max(1, len(looks) // 10))
    return float(roc_auc_score(newest["taken"], newest["likes"])) if newest["taken"].nunique() > 1 else float("nan")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
