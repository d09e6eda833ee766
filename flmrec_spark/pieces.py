"""A piece of a template, and how a value of the tables reads in it."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from flmrec_spark.errors import ConfigError

_IN_BRACKETS = [
    rf"\s*{re.escape(a)}\{{FIELD(?::\d*)?\}}{re.escape(b)}" for a, b in ("()", "[]", "（）", "《》", "【】")
]

Fields = Mapping[str, object]


@dataclass(frozen=True)
class Piece:
    """Text with fields, such as " liked {title};". `{field:40}` keeps 40 characters of the value."""

    text: str
    where: str

    @cached_property
    def parts(self) -> tuple[tuple[str, str | None, int | None], ...]:
        """(literal text, field after it or None, characters kept or None), in order.

        Raises:
          ConfigError: unbalanced braces, a field that is no plain name, or a width that is no number.
        """
        try:
            parsed = list(string.Formatter().parse(self.text))
        except ValueError as fault:
            raise ConfigError(f"template {self.where}: {fault} in {self.text!r}") from None
        result = []
        for literal, field, width, conversion in parsed:
            if field is not None and (not field.isidentifier() or conversion or (width and not width.isdecimal())):
                raise ConfigError(f"template {self.where}: got {self.text!r}, expected {{field}} or {{field:40}}")
            result.append((literal, field, int(width) if width else None))
        return tuple(result)

    def fields(self) -> set[str]:
        return {field for _, field, _ in self.parts if field is not None}

    def render(self, values: Fields) -> str | None:
        """The text, or None when a field has no value."""
        written = []
        for literal, field, width in self.parts:
            written.append(literal)
            if field is not None:
                value = as_text(values.get(field))
                if not value:
                    return None
                written.append(value[:width])
        return "".join(written)

    def render_known(self, values: Fields) -> str | None:
        """As `render`, without the brackets around one field that has no value."""
        text = self.text
        for field in self.fields():
            if not as_text(values.get(field)):
                text = re.sub("|".join(_IN_BRACKETS).replace("FIELD", field), "", text)
        return (self if text == self.text else Piece(text, self.where)).render(values)


def as_text(value: object) -> str:
    """A value as a prompt shows it: no spaces around, lists joined by commas, 7.0 as 7, nothing for null.

    Of a fraction six digits, or two behind the point where the whole part is longer; whole numbers are never cut, as a
    column of ids with gaps is one of floats.
    """
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if abs(value) >= 2**53:
            return f"{value:g}"
        n_whole = len(str(int(abs(value))))
        return str(int(value)) if value.is_integer() else f"{value:.{max(6, n_whole + 2)}g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(text for text in map(as_text, value) if text)
    return " ".join(str(value).split())
