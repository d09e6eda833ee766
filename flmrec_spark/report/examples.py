"""A few users as the page shows them: what they did, what was listed for them, and what they went on to like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from flmrec_spark import columns as c
from flmrec_spark.report.words import clipped
from flmrec_spark.stages.evaluation import draw_users, held_out
from flmrec_spark.stages.user_prompts import user_prompts

_SHOWN = 12  # entries of a history


@dataclass(frozen=True)
class Listed:
    title: str
    score: float
    is_hit: bool


@dataclass(frozen=True)
class ExampleUser:
    """Titles alone: no user_id and no item_id."""

    n_history: int  # of which the page shows the newest
    history: Sequence[tuple[str, bool]]  # newest first: title, liked
    listed: Sequence[Listed]
    liked_later: Sequence[str]


def collect_examples(
    interactions: DataFrame,
    users: DataFrame,
    items: DataFrame,
    lists_of: Callable[[DataFrame], DataFrame],
    *,
    split: str,
    history_splits: Sequence[str],
    history_length: int,
    n_users: int,
    seed: int,
    exclude_seen: bool,
) -> list[ExampleUser]:
    """At most `n_users` of those who liked something in the split, drawn by seed.

    `lists_of` makes the lists (user_id, rank, item_id, score) of rows of `user_prompts.user_prompts`.
    """
    if not n_users:
        return []
    drawn = draw_users(interactions.where(c.IS_LIKED), split=split, max_users=n_users, seed=seed)
    asked = users.join(drawn, c.USER_ID, "left_semi")
    prompts = user_prompts(
        asked, interactions, splits=history_splits, history_length=history_length, exclude_seen=exclude_seen
    )
    known = interactions.where(F.col(c.SPLIT).isin(*history_splits)).join(drawn, c.USER_ID, "left_semi")
    sizes = {row[c.USER_ID]: row["count"] for row in known.groupBy(c.USER_ID).count().collect()}
    rows = held_out(interactions, drawn, split=split, history_splits=history_splits)
    own, listed, later = (
        frame.toArrow().to_pylist() for frame in (prompts.select(c.USER_ID, c.HISTORY), lists_of(prompts), rows)
    )
    shown = {row[c.ITEM_ID] for row in (*listed, *later, *(entry for row in own for entry in row[c.HISTORY]))}
    titled = items.where(F.col(c.ITEM_ID).isin(*shown)).select(c.ITEM_ID, c.TITLE).collect()
    titles = {row[c.ITEM_ID]: row[c.TITLE] for row in titled}
    return example_users(sorted(own, key=lambda row: str(row[c.USER_ID])), listed, later, titles, sizes)


def example_users(
    prompts: Sequence[Mapping[str, Any]],
    lists: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    titles: Mapping[str, str],
    sizes: Mapping[str, int],
) -> list[ExampleUser]:
    """Collected prompts (user_id, history), lists (user_id, rank, item_id, score) and held-out rows of some users.

    `sizes` of whole histories, by user_id. `titles` by item_id; an item that has left the catalogue is shown by no
    title but a dash. Users without a list are left out.
    """
    found = []
    for prompt in prompts:
        own = sorted((row for row in lists if row[c.USER_ID] == prompt[c.USER_ID]), key=lambda row: row[c.RANK])
        held_out = [row for row in rows if row[c.USER_ID] == prompt[c.USER_ID] and row[c.IS_LIKED]]
        later = dict.fromkeys(
            row[c.ITEM_ID] for row in sorted(held_out, key=lambda row: (row[c.MOMENT], row[c.ITEM_ID]))
        )
        history = [(_title(titles, entry[c.ITEM_ID]), bool(entry[c.IS_LIKED])) for entry in prompt[c.HISTORY][:_SHOWN]]
        listed = [Listed(_title(titles, row[c.ITEM_ID]), float(row[c.SCORE]), row[c.ITEM_ID] in later) for row in own]
        if listed:
            found.append(
                ExampleUser(
                    sizes.get(prompt[c.USER_ID], 0), history, listed, [_title(titles, item) for item in later][:_SHOWN]
                )
            )
    return found


def _title(titles: Mapping[str, str], item: str) -> str:
    return clipped(titles.get(item, "–"))
