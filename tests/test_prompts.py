"""Templates: what a user and an item look like as text, and what is said about a wrong template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flmrec_spark.errors import ConfigError
from flmrec_spark.pieces import Piece, as_text
from flmrec_spark.prompts import Template, load_template, parse_template

ROOT = Path(__file__).parent.parent
FORM = """
name: t
user: {user}
history: {{liked: {liked}, disliked: " no {{title}};", none: " nothing"}}
item: {item}
"""


def template(*, user: str = '["{profile}"]', liked: str = '" yes {title};"', item: str = '["{title}"]') -> Template:
    return parse_template(FORM.format(user=user, liked=liked, item=item), where="t.yaml")


def test_the_english_template_reads_as_written() -> None:
    en = load_template("en")
    assert en.render_user({"age": 24, "job_title": "writer"}) == "user: age: 24, job title: writer;"
    assert en.render_entry({"title": "Heat"}, is_liked=True, value=5.0) == " liked Heat;"
    assert en.render_entry({"title": "Heat"}, is_liked=False, value=None) == " disliked Heat;"
    assert en.render_no_history() == " no history yet"
    item = {"item_id": "7", "title": "Heat", "year": "1995", "genres": ["Crime", "Drama"], "in_stock": True}
    assert en.render_item(item) == "Heat; year: 1995, genres: Crime, Drama, in stock: yes"


def test_the_chinese_template_reads_as_written() -> None:
    zh = load_template("zh")
    assert zh.render_user({"年龄": 24}) == "用户：年龄: 24；"
    assert zh.render_entry({"title": "盗火线"}, is_liked=True, value=1.0) == "喜欢《盗火线》；"
    assert zh.render_no_history() == "暂无历史"
    assert zh.render_item({"item_id": "7", "title": "盗火线", "year": None}) == "《盗火线》"


def test_a_piece_without_its_value_is_left_out() -> None:
    movies = load_template(str(ROOT / "conf/templates/movies.yaml"))
    assert movies.render_user({"age": None, "gender": "F", "occupation": "  "}) == ", F;"
    assert movies.render_item({"item_id": "1", "title": "Heat", "year": "", "genres": "Crime"}) == "Heat; Crime"
    assert load_template("en").render_user({}) == ""


def test_an_item_that_fills_no_piece_is_its_title() -> None:
    found = template(item='["{year}"]', liked='" {year}"')
    assert found.render_item({"item_id": "1", "title": "Heat"}) == "Heat"
    assert found.render_entry({"item_id": "1", "title": "Heat"}, is_liked=True, value=None) == " Heat"


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        (" liked {title} ({genres});", " liked Alien;"),
        (" liked {title:3} [{genres:9}], {year}!", " liked Ali, 1979!"),
        ("喜欢《{title}》（{genres}）；", "喜欢《Alien》；"),
        (" liked {title}: {genres};", " Alien"),
        (" {{{title}}} ({genres})", " {Alien}"),
        (" liked {genres}", " Alien"),
        (" liked [{genres}]({genres})", " liked"),
    ],
)
def test_an_entry_without_a_field_still_says_whether_it_was_liked(piece: str, expected: str) -> None:
    found = template(liked=json.dumps(piece, ensure_ascii=False))
    item = {"item_id": "1", "title": "Alien", "genres": None, "year": "1979"}
    assert found.render_entry(item, is_liked=True, value=None) == expected


def test_an_empty_piece_says_nothing_of_an_interaction() -> None:
    found = template(liked='""')
    assert found.render_entry({"title": "Heat"}, is_liked=True, value=None) == ""
    assert found.render_entry({"title": "Heat"}, is_liked=False, value=None) != ""


def test_braces_in_data_are_text() -> None:
    assert template().render_item({"item_id": "1", "title": "{title} {x!r:>9} {{}}"}) == "{title} {x!r:>9} {{}}"


def test_doubled_braces_in_a_piece_are_braces() -> None:
    assert template(item='["{{{title}}}"]').render_item({"item_id": "1", "title": "Heat"}) == "{Heat}"


def test_a_width_keeps_that_many_characters() -> None:
    found = template(item='["{title:3}|{genres:40}"]')
    assert found.render_item({"item_id": "1", "title": "éèêë", "genres": "Crime"}) == "éèê|Crime"


def test_rating_is_what_the_interaction_was_worth() -> None:
    found = template(liked='" {rating}/5 {title}"')
    assert found.render_entry({"title": "Heat"}, is_liked=True, value=4.0) == " 4/5 Heat"
    assert found.render_entry({"title": "Heat"}, is_liked=True, value=4.5) == " 4.5/5 Heat"
    assert found.render_entry({"title": "Heat"}, is_liked=True, value=None) == " Heat"


def test_rendering_cuts_nothing() -> None:
    title = "long " * 10_000 + "end"
    assert load_template("en").render_item({"item_id": "1", "title": title}) == title


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (float("nan"), ""),
        ("  a \t b\n", "a b"),
        ("007", "007"),
        (7.0, "7"),
        (0.1, "0.1"),
        (1234567.0, "1234567"),
        (-9007199254740991.0, "-9007199254740991"),
        (129999.5, "129999.5"),
        (1234567.891, "1234567.89"),
        (-1234567.891, "-1234567.89"),
        (10 / 3, "3.33333"),
        (1e300, "1e+300"),
        (float("inf"), "inf"),
        (0, "0"),
        (True, "yes"),
        (False, "no"),
        (["a", None, "", "b"], "a, b"),
        ([], ""),
        ("é 🎬 \u200d", "é 🎬 \u200d"),
    ],
)
def test_a_value_reads_as_people_write_it(value: object, text: str) -> None:
    assert as_text(value) == text


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"item": '["{titel}"]'}, r"template t\.yaml: item: unknown field \{titel\}, known: attributes, title, year"),
        ({"user": '["{title}"]'}, r"template t\.yaml: user: unknown field \{title\}, known: age, profile"),
        ({"liked": '"{age}"'}, r"history\.liked: unknown field \{age\}, known: attributes, rating, title, year"),
        ({"item": '["{rating}"]'}, r"item: unknown field \{rating\}"),
    ],
)
def test_an_unknown_field_is_told_with_the_known_ones(parts: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        template(**parts).check(item_fields=["title", "year"], user_fields=["age"])


@pytest.mark.parametrize("piece", ["{", "}", "{}", "{0}", "{a.b}", "{a[0]}", "{a!r}", "{a:>9}", "{a:{b}}", "{a b}"])
def test_a_field_is_a_plain_name_with_a_width_at_most(piece: str) -> None:
    with pytest.raises(ConfigError, match=r"^template t\.yaml: item"):
        template(item=f'["{piece}"]')


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: [", "template w: not YAML"),
        ("name: t", "template w: got name, expected exactly history, item, name, user"),
        ("- 1", "template w: got list, expected exactly"),
        ("", "template w: got NoneType, expected exactly"),
        ("{name: t, user: [], history: {liked: a}, item: [a]}", "w: history: got liked, expected exactly disliked"),
        (
            "{name: t, user: x, history: {liked: a, disliked: b, none: c}, item: [a]}",
            "w: user: got 'x', expected a list",
        ),
        (
            "{name: t, user: [1], history: {liked: a, disliked: b, none: c}, item: [a]}",
            "w: user: got 1, expected a text",
        ),
        ("{name: t, user: [], history: {liked: a, disliked: b, none: c}, item: []}", "w: item: got no piece"),
    ],
)
def test_a_template_of_another_form_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_template(text, where="w")


def test_a_missing_template_is_told_with_those_that_ship() -> None:
    with pytest.raises(ConfigError, match="got fr, expected one of en, zh or a YAML file"):
        load_template("fr")


def test_the_movie_template_knows_its_fields() -> None:
    movies = load_template(str(ROOT / "conf/templates/movies.yaml"))
    movies.check(item_fields=["title", "year", "genres"], user_fields=["age", "gender", "occupation"])
    with pytest.raises(ConfigError, match=r"unknown field \{occupation\}, known: age, profile"):
        movies.check(item_fields=["title", "year", "genres"], user_fields=["age"])


@pytest.mark.parametrize("name", ["en", "zh", str(ROOT / "conf/templates/movies.yaml")])
def test_a_template_survives_the_way_to_yaml_and_back(name: str) -> None:
    found = load_template(name)
    back = parse_template(found.to_yaml(), where="back")
    assert back.to_yaml() == found.to_yaml()
    item = {"item_id": "1", "title": "Heat", "year": "1995", "genres": "Crime"}
    assert back.render_item(item) == found.render_item(item)


@given(title=st.text(), year=st.none() | st.text() | st.integers() | st.floats(), genres=st.lists(st.text()))
def test_any_data_renders_to_its_own_words(title: str, year: object, genres: list[str]) -> None:
    item = {"item_id": "1", "title": title, "year": year, "genres": genres}
    text = template(item='["{title}", "; {year}", "; {genres}"]').render_item(item)
    written = [as_text(value) for value in (title, year, genres)]
    assert text == "".join([written[0], *[f"; {word}" for word in written[1:] if word]])


def test_an_answer_is_three_texts_or_is_not_there() -> None:
    text = load_template("en").to_yaml()
    assert load_template("en").answer is not None
    before = text[: text.index("answer:")]
    assert parse_template(before, where="w").answer is None
    with pytest.raises(ConfigError, match="w: answer: got cue, expected exactly cue, disliked, liked"):
        parse_template(before + "answer: {cue: a}", where="w")
    with pytest.raises(ConfigError, match=r"w: answer\.liked: got True, expected a text in quotes"):
        parse_template(before + "answer: {cue: a, liked: yes, disliked: b}", where="w")


def test_a_template_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(FORM.encode("utf-16"))
    with pytest.raises(ConfigError, match=r"prompts.template: .*mine.yaml: not readable as UTF-8"):
        load_template(str(file))


def test_a_rating_is_never_cut() -> None:
    found = template(liked='" {rating} {title}"')
    assert found.render_entry({"title": "Heat"}, is_liked=True, value=1234567.0) == " 1234567 Heat"


def test_a_key_that_stands_twice_and_a_cue_with_a_field_are_refused() -> None:
    text = template().to_yaml()
    with pytest.raises(ConfigError, match="key user stands twice"):
        parse_template(text + "user: []\n", where="t.yaml")
    answer = 'answer: {cue: " Would they like {title}?", liked: " yes", disliked: " no"}\n'
    with pytest.raises(ConfigError, match=r"t.yaml: answer.cue: got .* expected a text in quotes, of no field"):
        parse_template(text + answer, where="t.yaml")


@given(st.text(st.characters(exclude_characters="{}", exclude_categories=("Cs",)), max_size=20))
def test_a_template_is_read_back_as_it_was_written(text: str) -> None:
    entry, item = Piece(f"{text}{{title}}", ""), Piece("{title}", "")
    before = Template("t", (Piece(text, ""),), entry, entry, Piece("", ""), (item,))
    again = parse_template(before.to_yaml(), where="t")
    assert again.to_yaml() == before.to_yaml()
    assert [piece.text for piece in again.user] == [text]
