"""The page of a small evaluation, read with an HTML parser: what it shows, and what hostile titles cannot do."""

from __future__ import annotations

import re

import numpy as np
import pytest

from flmrec_spark.report import page
from flmrec_spark.report.content import Result
from flmrec_spark.report.examples import ExampleUser, Listed
from flmrec_spark.report.speeds import Speed
from flmrec_spark.stages.measurements import Answers, measure, pairs
from flmrec_spark.stages.segments import COLD, HEAD, TAIL, HeldOut
from tests.report.pages import Element, cells, parsed

MODELS = ("flm", "popularity", "item_mean")
RUN = page.Run("evaluate-<b>1</b>", "test", 120, 40, 50, {"interactions": "3", "checkpoint": "c0ffee"})
HISTORY = [
    {"step": 5, "auc": 0.6, "uauc": 0.55, "log_loss": 0.68, "ndcg": float("nan"), "seen": "x"},
    {"step": 10, "auc": 0.7, "uauc": 0.6, "log_loss": 0.61, "ndcg": float("nan")},
]
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</li></ul></section><style>*{display:none}</style>",
    "{{ run.run_id }}{% raw %}",
    "\u202egnihton\x00\x1b[2J",
    "&lt;b&gt; & 'quotes'",
    "用户 甲",
]
EXAMPLES = [
    ExampleUser(30, [(text, place % 2 == 0) for place, text in enumerate(HOSTILE)], [Listed("A", 0.75, True)], ["A"]),
    ExampleUser(0, [], [Listed(title, 0.5, False) for title in HOSTILE], []),
]
SPEEDS = [Speed("layer 0", 1000.0, 0.6), Speed("layer last", 65000.0, 0.61), Speed("attention", 130000.0, 0.59)]


def result(*, n_resamples: int = 30, everything_liked: bool = False) -> Result:
    """flm orders nearly everything right, item_mean less, and popularity makes the better lists."""
    random = np.random.default_rng(1)
    users, labels = np.repeat(np.arange(40), 3), np.tile([True, False, True], 40)
    labels |= everything_liked
    noise = random.random(120)
    ours, theirs = np.clip(labels * 0.6 + noise * 0.4, 0, 1), np.clip(labels * 0.2 + noise * 0.8, 0, 1)
    hit, miss = np.tile([HEAD + 1, 0, TAIL + 1], (40, 1)), np.tile([0, 0, TAIL + 1], (40, 1))
    novelty = {("novelty", k): np.full(40, 3.5) for k in (1, 3)}
    of_all = {("coverage", k): 0.25 * k for k in (1, 3)}
    answers = [
        Answers("flm", ours, ours, miss, novelty, of_all),
        Answers("popularity", noise * 99, None, hit, novelty, of_all),
        Answers("item_mean", theirs, theirs, miss, novelty, of_all),
    ]
    world = HeldOut(
        users, labels, np.tile([COLD, HEAD, TAIL], 40), np.tile([0, 1, 1], (40, 1)), np.repeat([0, 3, 50, 200], 10)
    )
    return Result(
        measure(world, answers, cutoffs=[1, 3], compared=pairs(MODELS, "item_mean"), n_resamples=n_resamples, seed=1),
        MODELS,
        "item_mean",
    )


@pytest.fixture(scope="module")
def html() -> str:
    return page.render(result(), RUN, training=HISTORY, examples=EXAMPLES, speeds=SPEEDS)


@pytest.fixture(scope="module")
def read(html: str) -> Element:
    return parsed(html)


def section(read: Element, anchor: str) -> list[Element]:
    """The elements of the page's main part from an h2 to the next."""
    main = [part for part in read.all("main")[0].parts if isinstance(part, Element)]
    start = next(place for place, one in enumerate(main) if one.attributes.get("id") == anchor)
    stop = next((place for place in range(start + 1, len(main)) if main[place].tag == "h2"), len(main))
    return [inner for one in main[start:stop] for inner in (one, *one.every())]


def test_the_page_asks_nothing_of_a_network_and_runs_nothing(html: str, read: Element) -> None:
    tags = {one.tag for one in read.every()}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "video", "audio"}
    for one in read.every():
        assert not [name for name in one.attributes if name.startswith("on") or name in ("src", "srcset")]
        assert one.attributes.get("href", "#").startswith("#")
    assert not re.search(r"url\(|@import|https?://", html)
    policy = next(one for one in read.all("meta") if one.attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.attributes["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_hostile_titles_are_shown_as_they_are_and_change_nothing(read: Element) -> None:
    people = read.all("section", class_="person")
    assert len(people) == 2
    shown = [title.text() for title in people[0].all("ul")[0].all("bdi")]
    assert shown == [" ".join(title.split()) for title in HOSTILE]
    assert [one.text() for one in people[1].all("ol")[0].all("bdi")] == shown
    assert len(read.all("style")) == 1
    assert read.all("title")[0].text() == "Evaluation evaluate-<b>1</b>"
    assert not read.all("b")


def test_a_user_is_shown_with_signs_for_readers_of_screens_and_without_an_id(read: Element) -> None:
    first, second = read.all("section", class_="person")
    signs = [one.attributes["aria-label"] for one in first.all("ul")[0].all("span", class_="sign")]
    assert signs == ["liked", "not liked"] * 3 + ["liked"]
    assert "(7 of 30)" in first.text()
    hit = first.all("li", class_="hit")
    assert [one.text() for one in hit] == ["A 0.750 ✓"]
    assert "none: a new user" in second.text()
    assert not second.all("li", class_="hit")


def test_the_headline_compares_with_the_best_baseline_of_each_metric(read: Element) -> None:
    found = read.all("div", class_="cards")[0].all("section", class_="card")
    cards = {card.all("h3")[0].text(): card for card in found}
    assert list(cards) == ["AUC", "UAUC", "Log-loss", "NDCG@3", "Recall@3"]
    for name, card in cards.items():
        is_list = name.endswith("@3")
        assert card.all("span", class_="chip")[0].text() == ("worse" if is_list else "better")
        assert f"beside {'popularity' if is_list else 'item mean'}" in card.text()
    assert "−0.5000" in cards["Recall@3"].text()
    lead = read.all("p", class_="lead")[0].text()
    assert lead.removeprefix("Against the best baseline of each metric, flm is ") == (
        "better at AUC, UAUC, Log-loss; worse at NDCG@3, Recall@3."
    )


def test_tables_hold_what_was_measured(read: Element) -> None:
    rows = {(row.model, row.metric, row.k, row.segment): row for row in result().rows}
    tables = {table.all("caption")[0].text(): cells(table) for table in read.all("table")}
    first = tables["Is a held-out item liked?"]
    assert first[0][:3] == ["model", "AUC", "UAUC"]
    assert first[0][-3:] == ["Log-loss ↓", "Brier score ↓", "Calibration error ↓"]
    auc = rows["flm", "auc", 0, "all"]
    assert first[1][:2] == ["flm", f"{auc.value:.3f} {auc.low:.3f}–{auc.high:.3f}"]
    assert first[2][0] == "popularity" and first[2][3:] == ["–"] * 7
    paired = rows["flm - popularity", "auc", 0, "all"]
    differences = tables["flm less each other"]
    assert differences[1][0] == "popularity"
    assert differences[1][1].split()[0] == f"{paired.value:+.4f}"
    assert [row[0] for row in tables["Each other baseline less item mean"][1:]] == ["popularity"]
    assert [row[0] for row in tables["Lists of 1: beyond hits"]] == ["model", *(m.replace("_", " ") for m in MODELS)]
    assert "Lists of 0: hits" not in tables


def test_every_drawing_is_described_and_every_table_has_headers(read: Element) -> None:
    drawings = read.all("svg")
    assert len(drawings) > 12
    assert all(one.attributes["role"] == "img" and len(one.attributes["aria-label"]) > 20 for one in drawings)
    assert all(one.all("figcaption")[0].text() for one in read.all("figure"))
    for table in read.all("table"):
        assert table.all("caption")[0].text()
        assert {one.attributes["scope"] for one in table.all("th")} == {"col", "row"}
    assert read.all("html")[0].attributes["lang"] == "en"
    anchors = {one.attributes.get("id") for one in read.every()}
    assert {link.attributes["href"][1:] for link in read.all("a")} <= anchors


def test_error_bars_lie_around_their_values_and_training_is_drawn_step_by_step(read: Element) -> None:
    auc = next(one for one in section(read, "models") if one.tag == "figure")
    dots = [float(one.attributes["cx"]) for one in auc.all("circle")]
    bars = [(float(one.attributes["x1"]), float(one.attributes["x2"])) for one in auc.all("line", class_="whisker")]
    assert len(dots) == len(bars) == len(MODELS)
    assert all(low <= dot <= high for dot, (low, high) in zip(dots, bars, strict=True))
    assert dots[0] == max(dots)
    training = [one for one in section(read, "training") if one.tag == "figure"]
    assert [one.all("figcaption")[0].text() for one in training] == [
        "Validation Log-loss",
        "Validation AUC",
        "Validation UAUC",
    ]  # NDCG is not a number, and what is no metric is not drawn
    heights = [float(dot.attributes["cy"]) for dot in training[1].all("circle")]
    assert len(heights) == 2 and heights[1] < heights[0]  # upwards


def test_segments_without_anybody_are_left_out(read: Element) -> None:
    tables = [one for one in section(read, "segments") if one.tag == "table"]
    names = [row[0] for row in cells(tables[-1])[1:]]
    assert "cold users" in names and "history 20-99" in names and "tail items" in names
    assert "history 5-19" not in names
    assert cells(tables[0])[1][1] == "40"


def test_sections_without_content_are_left_out_with_their_links() -> None:
    bare = parsed(page.render(result(n_resamples=0), RUN, training=[], examples=[], speeds=[]))
    anchors = {one.attributes.get("id") for one in bare.all("h2")}
    assert anchors >= {"models", "lists", "segments", "calibration", "numbers"}
    assert not anchors & {"training", "speed", "users"}
    assert not {link.attributes["href"] for link in bare.all("a")} & {"#training", "#speed", "#users"}
    assert not bare.all("line", class_="whisker")  # no resamples, no intervals


def test_a_world_in_which_everything_is_liked_has_a_page_too() -> None:
    bare = parsed(page.render(result(everything_liked=True), RUN, training=[], examples=[], speeds=[]))
    cards = [card.all("h3")[0].text() for card in bare.all("section", class_="card")]
    assert cards == ["Log-loss", "NDCG@3", "Recall@3"]


def test_speed_is_drawn_in_order(read: Element) -> None:
    figure = next(one for one in section(read, "speed") if one.tag == "figure")
    said = figure.all("svg")[0].attributes["aria-label"]
    assert said.endswith("layer 0 1000, 0.6000; layer last 65k, 0.6100; attention 130k, 0.5900")
    places = [float(dot.attributes["cx"]) for dot in figure.all("circle")]
    assert places == sorted(places)


def test_what_diversity_costs_has_a_section_where_it_was_measured(html: str) -> None:
    assert 'id="diversity"' not in html
    random = np.random.default_rng(2)
    users, labels = np.repeat(np.arange(40), 2), np.tile([True, False], 40)
    scores, hit = random.random(80), np.tile([HEAD + 1, 0, 0], (40, 1))
    alike = {("diversity", k): np.full(40, 0.25) for k in (1, 3)}
    answers = [
        Answers("flm", scores, scores, hit, alike, {("coverage", 3): 0.1}),
        Answers("popularity", scores, None, hit, {}, {}),
        Answers("flm_diverse", None, None, hit * 0, {("diversity", 3): np.full(40, 0.75)}, {("coverage", 3): 0.5}),
    ]
    world = HeldOut(users, labels, np.full(80, HEAD), np.tile([0, 1, 0], (40, 1)), np.full(40, 9))
    compared = [*pairs(("flm", "popularity"), "popularity"), ("flm_diverse", "flm")]
    rows = measure(world, answers, cutoffs=[1, 3], compared=compared, n_resamples=30, seed=1)
    told = Result(rows, ("flm", "popularity"), "popularity", (), {"flm_diverse": "flm"}, "relevance 0.7, at most 4 <b>")
    shown = parsed(page.render(told, RUN, training=[], examples=[], speeds=[]))
    assert "relevance 0.7, at most 4 <b>." in " ".join(one.text() for one in shown.all("p"))
    table = next(one for one in shown.all("table") if one.all("caption")[0].text() == "flm diverse beside flm")
    read_rows = {row[0]: row[1:] for row in cells(table)}
    assert read_rows["lists"] == ["NDCG@3", "Recall@3", "Hit rate@3", "Diversity@3", "Catalogue coverage@3"]
    assert [cell.split()[0] for cell in read_rows["flm diverse"]] == ["0.000", "0.000", "0.000", "0.750", "0.500"]
    assert [cell.split()[0] for cell in read_rows["difference"]] == ["−1.0000", "−1.0000", "−1.0000", "+0.5000", "–"]
    numbers = next(one for one in shown.all("table") if one.all("caption")[0].text() == "Lists of 3: hits")
    assert [row[0] for row in cells(numbers)[1:]] == ["flm", "popularity", "flm diverse"]
