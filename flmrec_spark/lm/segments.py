"""Prompts as tokens: a user segment and item segments, tokenised apart, in training and in scoring alike.

    user segment   [start] instruction and profile, history newest first [end]
    item segment   [start] title and attributes [end]         the score is read at its [start]

Every piece is tokenised on its own and the ids are joined, so the tokens of a history entry are made once and
no tokenizer merges across a boundary. Only the oldest history is ever cut; what cannot fit is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flmrec_spark.errors import CheckpointError
from flmrec_spark.prompts import Fields, Template

TOO_LONG_USER = "instruction and profile exceed prompts.user_tokens"
TOO_LONG_ITEM = "item text exceeds prompts.item_tokens"
PROBE = "Toy Story (1995), 喜欢《活着》 é 7!"

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Interaction:
    """One entry of a history: the item's fields, what the user thought and how much it was worth."""

    item: Fields
    is_liked: bool
    value: float | None = None


@dataclass(frozen=True)
class UserSegment:
    ids: list[int]
    n_cut: int  # interactions of the history that did not fit


@dataclass(frozen=True)
class TokenBlock:
    """Segments padded to one length. ids: int32 (N, T); lengths: int32 (N,), each in 1..T."""

    ids: Ids
    lengths: Ids

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, index: npt.NDArray[np.intp]) -> TokenBlock:
        """The rows of an index, padded to the longest among them."""
        lengths = self.lengths[index]
        return TokenBlock(self.ids[index, : lengths.max(initial=1)], lengths)


class Segmenter:
    """Renders and tokenises with one template, one tokenizer and one pair of budgets."""

    def __init__(
        self, tokenizer: Any, template: Template, *, user_tokens: int, item_tokens: int, history_length: int
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.user_tokens = user_tokens
        self.item_tokens = item_tokens
        self.history_length = history_length
        self.start = _special(tokenizer, "cls_token_id", "bos_token_id")
        self.end = _special(tokenizer, "sep_token_id", "eos_token_id")
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.end
        self._tokens: dict[str, list[int]] = {}

    def user(self, profile: Fields, history: Sequence[Interaction]) -> UserSegment | None:
        """The user segment, or None when the text before the history does not fit the budget alone."""
        head = self._encode_all([self.template.render_user(profile)])[0]  # not kept: as many as users
        room = self.user_tokens - 2 - len(head)
        if room < 0:
            return None
        if not history:
            none = self._encode(self.template.render_no_history())
            return UserSegment([self.start, *head, *none[:room], self.end], 0)
        ids: list[int] = []
        taken = 0
        for entry in history[: self.history_length]:
            tokens = self._entry(entry)
            if len(ids) + len(tokens) > room:
                break
            ids += tokens
            taken += 1
        return UserSegment([self.start, *head, *ids, self.end], len(history) - taken)

    def entry_tokens(self, item: Fields) -> int:
        """Tokens that a liked item takes in a history."""
        return len(self._entry(Interaction(item, True)))

    def user_text(self, text: str) -> list[int]:
        """A user segment from text that is already rendered; its end is cut, where the oldest history stands."""
        return [self.start, *self._encode_all([text])[0][: self.user_tokens - 2], self.end]

    def items(self, items: Sequence[Fields]) -> list[list[int] | None]:
        """Item segments; None where an item does not fit the budget."""
        return self.item_texts([self.template.render_item(item) for item in items])

    def item_texts(self, texts: Sequence[str]) -> list[list[int] | None]:
        """As `items`, from text that is already rendered."""
        room = self.item_tokens - 2
        return [[self.start, *ids, self.end] if len(ids) <= room else None for ids in self._encode_all(texts)]

    def block(self, segments: Sequence[Sequence[int]]) -> TokenBlock:
        """Segments of one kind as one padded block."""
        lengths = np.fromiter(map(len, segments), dtype=np.int32, count=len(segments))
        ids = np.full((len(segments), int(lengths.max(initial=1))), self.pad, dtype=np.int32)
        for row, segment in enumerate(segments):
            ids[row, : len(segment)] = segment
        return TokenBlock(ids, lengths)

    def probe(self) -> list[int]:
        """Tokens of a fixed text, by which a checkpoint recognises its tokenizer."""
        return self._encode_all([PROBE])[0]

    def _entry(self, entry: Interaction) -> list[int]:
        return self._encode(self.template.render_entry(entry.item, is_liked=entry.is_liked, value=entry.value))

    def _encode(self, text: str) -> list[int]:
        known = self._tokens.get(text)
        if known is None:
            known = self._tokens[text] = self._encode_all([text])[0]
        return known

    def _encode_all(self, texts: Iterable[str]) -> list[list[int]]:
        texts = list(texts)
        if not texts:
            return []
        # A title "[SEP]" is text as any other: only this module places special tokens.
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        ids: list[list[int]] = self.tokenizer(texts, **options)["input_ids"]
        return ids


def _special(tokenizer: Any, *names: str) -> int:
    for name in names:
        value = getattr(tokenizer, name, None)
        if value is not None:
            return int(value)
    raise CheckpointError(f"tokenizer: got none of {', '.join(names)}, expected one to mark the segments")
