"""A source of `prepare` whose rows are each accepted or refused, and how many may be refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame

from flmrec_spark.config import PrepareConfig
from flmrec_spark.errors import InputError, RejectedError


@dataclass(frozen=True)
class Cleaned:
    """A source whose rows are each accepted, refused or say what another one says. `refused` counts by reason."""

    name: str
    tagged: DataFrame
    rows_in: int
    refused: Mapping[str, int]

    @property
    def rejected(self) -> int:
        return sum(self.refused.values())

    @property
    def kept(self) -> int:
        """Accepted rows, and those that say the same."""
        return self.rows_in - self.rejected


def expect_few_rejects(cleaned: Sequence[Cleaned], config: PrepareConfig) -> None:
    """Raises RejectedError above the share that is allowed, and InputError where nothing of a source is left."""
    for one in cleaned:
        if one.rejected > config.max_reject_share * one.rows_in:
            reasons = ", ".join(f"{n} {reason}" for reason, n in by_count(one.refused))
            raise RejectedError(
                f"prepare.{one.name}: refused {one.rejected} of {one.rows_in} rows ({reasons}), expected at most "
                f"prepare.max_reject_share = {config.max_reject_share}; see the table rejects{_cure(one)}; "
                "nothing else changed"
            )
        if one.kept == 0:
            raise InputError(f"prepare.{one.name}: all {one.rows_in} rows were refused; see the table rejects")


def _cure(one: Cleaned) -> str:
    named = {
        "item not in items": "prepare.items",
        "malformed row": f"prepare.{one.name}.options, such as multiLine: true for line breaks in quotes",
        "rating out of range": "prepare.rating_range",
        "text too long": "prepare.max_text_chars",
        "unknown event": "prepare.event_values",
        "unknown split": "prepare.interactions, of which each row says train, valid or test",
        "unreadable id": f"prepare.{one.name}.options.encoding",
        "unreadable timestamp": "prepare.timestamp_format",
    }
    most = by_count(one.refused)[0][0]
    return f" and {named[most]}" if most in named else ""


def by_count(refused: Mapping[str, int]) -> list[tuple[str, int]]:
    """Reasons, the most frequent first."""
    return sorted(refused.items(), key=lambda item: (-item[1], item[0]))
