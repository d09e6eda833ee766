"""Backward elimination on parts that are letters, with values that are written out."""

from __future__ import annotations

import math

import pytest

from flmrec_spark.elimination import without_idle

VALUES = {"abc": 0.5, "ab": 0.2, "ac": 0.6, "bc": 0.5, "a": 0.3, "b": 0.9, "c": 0.6}


def left(values: dict[str, float], parts: str = "abc", *, unfit: tuple[str, ...] = ()) -> tuple[str | None, list[str]]:
    """What is left of the letters, and what was fitted; each letter may go, but not the last."""
    fitted: list[str] = []

    def fit(chosen: frozenset[str]) -> str | None:
        fitted.append("".join(sorted(chosen)))
        return None if fitted[-1] in unfit else fitted[-1]

    def smaller(found: str, chosen: frozenset[str]) -> list[frozenset[str]]:
        assert found == "".join(sorted(chosen))
        return [chosen - {letter} for letter in found] if len(chosen) > 1 else []

    return without_idle(fit, values.__getitem__, frozenset(parts), smaller), fitted


def test_parts_without_which_the_value_is_no_lower_go_one_after_the_other() -> None:
    assert left(VALUES) == ("c", ["abc", "bc", "ac", "ab", "c", "a"])  # never b alone: not from there
    assert left(VALUES | {"bc": 0.49, "ac": 0.49}) == ("abc", ["abc", "bc", "ac", "ab"])
    assert left(VALUES | {"c": 0.59})[0] == "ac"
    assert left(VALUES | {"ac": 0.5, "c": 0.4})[0] == "b"  # of equals the first: bc, and from there b


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_value_that_tells_nothing_leaves_every_part(value: float) -> None:
    assert left(dict.fromkeys(VALUES, value)) == ("abc", ["abc"])


def test_what_cannot_be_fitted_is_passed_over() -> None:
    assert left(VALUES, unfit=("abc",)) == (None, ["abc"])
    assert left(VALUES, unfit=("ac",))[0] == "b"
    assert left(VALUES | {"ac": math.nan})[0] == "b"
