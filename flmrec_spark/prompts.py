"""Templates: a user and an item as text. The only place where a prompt is written.

A template is two short lists of pieces, three pieces for a history, and for decoders an answer. A piece with a field
that has no value is left out, so a user without a profile or an item without a genre reads naturally. Rendering never
cuts: what does not fit is decided in tokens, by `lm.segments`, and only from the oldest history.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from flmrec_spark import columns as c
from flmrec_spark.errors import ConfigError
from flmrec_spark.pieces import Fields, Piece, as_text
from flmrec_spark.yaml_text import Dumper, Loader

PROFILE = "profile"
ATTRIBUTES = "attributes"
_SHIPPED = Path(__file__).parent / "templates"
_PARTS = {"name", "user", "history", "item"}
_KINDS = {"liked", "disliked", "none"}
_ANSWER = {"cue", "liked", "disliked"}  # not yes and no: YAML reads those as true and false


@dataclass(frozen=True)
class Answer:
    """What a decoder reads after the item, and the two words that it may go on with."""

    cue: str
    liked: str
    disliked: str


@dataclass(frozen=True)
class Template:
    name: str
    user: tuple[Piece, ...]
    liked: Piece
    disliked: Piece
    none: Piece
    item: tuple[Piece, ...]
    answer: Answer | None = None  # decoders and encoder-decoders only

    def render_user(self, profile: Fields) -> str:
        """What stands before the history."""
        known = {name: value for name, value in profile.items() if as_text(value)}
        return _join(self.user, {**profile, PROFILE: _listed(known)})

    def render_entry(self, item: Fields, *, is_liked: bool, value: float | None) -> str:
        """One interaction of the history; {rating} is what the interaction was worth. An empty piece says nothing.

        A field without a value costs its brackets alone, as the piece says too whether the item was liked; where it has
        no brackets, the title stands for the piece.
        """
        piece = self.liked if is_liked else self.disliked
        fields = _item_fields(item) | {c.RATING: None if value is None else as_text(float(value))}
        written = piece.render_known(fields)
        return f" {as_text(item[c.TITLE])}" if written is None else written

    def render_no_history(self) -> str:
        return self.none.render({}) or ""

    def render_item(self, item: Fields) -> str:
        """Title and attributes; the title alone when no piece has all of its fields."""
        return _join(self.item, _item_fields(item)) or as_text(item[c.TITLE])

    def check(self, *, item_fields: Iterable[str], user_fields: Iterable[str]) -> None:
        """Raises ConfigError when a piece names a field that the tables lack; lists those that they have."""
        items, users = {*item_fields, ATTRIBUTES}, {*user_fields, PROFILE}
        for pieces, known in (
            (self.user, users),
            ((self.liked, self.disliked), items | {c.RATING}),
            ((self.none,), set[str]()),
            (self.item, items),
        ):
            for piece in pieces:
                unknown = sorted(piece.fields() - known)
                if unknown:
                    names = ", ".join(sorted(known)) or "none"
                    raise ConfigError(f"template {piece.where}: unknown field {{{unknown[0]}}}, known: {names}")

    def to_yaml(self) -> str:
        parts: dict[str, Any] = {
            "name": self.name,
            "user": [piece.text for piece in self.user],
            "history": {kind: getattr(self, kind).text for kind in ("liked", "disliked", "none")},
            "item": [piece.text for piece in self.item],
        }
        if self.answer is not None:
            parts["answer"] = asdict(self.answer)
        return yaml.dump(parts, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def load_template(name: str) -> Template:
    """`en`, `zh`, or a path to a YAML file of the same form.

    Raises:
      ConfigError: no such template, no YAML, a part missing or unknown, a piece that is no text.
    """
    shipped = _SHIPPED / f"{name}.yaml"
    file = shipped if shipped.is_file() and "/" not in name else Path(name)
    if not file.is_file():
        names = ", ".join(sorted(path.stem for path in _SHIPPED.glob("*.yaml")))
        raise ConfigError(f"prompts.template: got {name}, expected one of {names} or a YAML file")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"prompts.template: {name}: not readable as UTF-8: {' '.join(str(fault).split())}") from None
    return parse_template(text, where=str(name))


def parse_template(text: str, *, where: str) -> Template:
    """A template from its YAML text; `where` names it in errors. Raises ConfigError as load_template does."""
    try:
        values: Any = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as fault:
        raise ConfigError(f"template {where}: not YAML: {' '.join(str(fault).split())}") from None
    has_answer = isinstance(values, dict) and "answer" in values
    _expect_keys(values, _PARTS | {"answer"} if has_answer else _PARTS, where)
    _expect_keys(values["history"], _KINDS, f"{where}: history")
    template = Template(
        name=str(values["name"]),
        user=_pieces(values["user"], f"{where}: user"),
        item=_pieces(values["item"], f"{where}: item"),
        **{kind: _piece(values["history"][kind], f"{where}: history.{kind}") for kind in _KINDS},
        answer=_answer(values["answer"], f"{where}: answer") if has_answer else None,
    )
    if not template.item:
        raise ConfigError(f"template {where}: item: got no piece, expected at least one")
    return template


def _item_fields(item: Fields) -> dict[str, object]:
    known = {key: value for key, value in item.items() if key not in (c.ITEM_ID, c.TITLE) and as_text(value)}
    return {**item, ATTRIBUTES: _listed(known)}


def _listed(values: Fields) -> str:
    return ", ".join(f"{name.replace('_', ' ')}: {as_text(value)}" for name, value in values.items())


def _join(pieces: Iterable[Piece], values: Fields) -> str:
    return "".join(text for text in (piece.render(values) for piece in pieces) if text is not None)


def _pieces(values: Any, where: str) -> tuple[Piece, ...]:
    if not isinstance(values, list):
        raise ConfigError(f"template {where}: got {values!r}, expected a list of texts")
    return tuple(_piece(value, where) for value in values)


def _piece(value: Any, where: str) -> Piece:
    if not isinstance(value, str):
        raise ConfigError(f"template {where}: got {value!r}, expected a text")
    piece = Piece(value, where)
    piece.fields()
    return piece


def _answer(values: Any, where: str) -> Answer:
    _expect_keys(values, _ANSWER, where)
    for name in sorted(_ANSWER):
        if not isinstance(values[name], str) or Piece(values[name], where).fields():
            raise ConfigError(f"template {where}.{name}: got {values[name]!r}, expected a text in quotes, of no field")
    return Answer(**values)


def _expect_keys(values: Any, keys: set[str], where: str) -> None:
    if not isinstance(values, dict) or set(values) != keys:
        got = ", ".join(map(str, values)) if isinstance(values, dict) else type(values).__name__
        raise ConfigError(f"template {where}: got {got}, expected exactly {', '.join(sorted(keys))}")
