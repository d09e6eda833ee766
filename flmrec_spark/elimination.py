"""Backward elimination: the parts of a model without which it is no worse."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

Part = TypeVar("Part", bound=object)
Model = TypeVar("Model", bound=object)
Parts = frozenset[Part]


def without_idle(
    fit: Callable[[Parts[Part]], Model | None],
    value: Callable[[Model], float],
    parts: Parts[Part],
    smaller: Callable[[Model, Parts[Part]], Iterable[Parts[Part]]],
) -> Model | None:
    """What `fit` makes of the parts, less those without which its value is no lower, one after the other.

    Nothing is left out of a value that is nan or 0, which tells no part from another.

    Args:
      fit: None where the parts cannot be fitted.
      value: of lists, higher is better.
      smaller: sets of parts to look at instead of those of a model; of equally good ones the first is taken.
    """
    found = fit(parts)
    top = 0.0 if found is None else value(found)
    while found is not None and top > 0:
        tried = [(own, value(own), less) for less in smaller(found, parts) if (own := fit(less)) is not None]
        better = [one for one in tried if one[1] >= top]
        if not better:
            break
        found, top, parts = max(better, key=lambda one: one[1])
    return found
