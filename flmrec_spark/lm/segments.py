"""Prompts as tokens: a user segment and item segments, tokenised apart, in training and in scoring alike.

    encoder           [start] instruction, profile, history newest first [end]    [start] title, attributes [end]
    decoder           [bos] instruction, profile, history newest first            title, attributes, answer cue
    encoder-decoder   instruction, profile, history newest first [end]            [start] title, attributes, answer cue

An encoder's score is read at the item's first token, the others' at its last.

Every piece is tokenised on its own and the ids are joined, so the tokens of a history entry are made once and
no tokenizer merges across a boundary. Only the oldest history is ever cut, and an entry that would not fit if it stood
alone; an item or a profile that cannot fit is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from flmrec_spark.errors import CheckpointError, ConfigError
from flmrec_spark.lm.token_block import TokenBlock
from flmrec_spark.pieces import Fields
from flmrec_spark.prompts import Template

TOO_LONG_USER = "instruction and profile exceed prompts.user_tokens"
TOO_LONG_ITEM = "item text exceeds prompts.item_tokens"
PROBE = "Toy Story (1995), 喜欢《活着》 é 7!"
_BLOCK = 4096  # texts that are tokenised at once
_MOST_KNOWN = 500_000  # texts whose tokens are kept: entries with a {rating} may be as many as interactions
FACTORS = -1  # the place of the collaborative token, which is no word
PAD = 0  # no model sees it, and every vocabulary has it, while a tokenizer's own may have been added behind the last

Marks = tuple[list[int], list[int]]  # before and after the text


@dataclass(frozen=True)
class Layout:
    """What a kind of model marks its segments with; `decoder_start` is for an encoder-decoder."""

    kind: Literal["encoder", "decoder", "encoder-decoder"] = "encoder"
    decoder_start: int | None = None


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
    profile: list[int]  # those of the ids before the history, without marks; none where it says no more than all do


class Segmenter:
    """Renders and tokenises with one template, one tokenizer, one pair of budgets and the marks of one kind of model.

    With `has_factors` each segment holds FACTORS once, behind its first mark.

    Raises:
      CheckpointError: the tokenizer has no token for a mark.
      ConfigError: a budget has no room for a token beside the marks.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: Template,
        *,
        user_tokens: int,
        item_tokens: int,
        history_length: int,
        layout: Layout | None = None,
        has_factors: bool = False,
    ) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.user_tokens = user_tokens
        self.item_tokens = item_tokens
        self.history_length = history_length
        self.layout = layout or Layout()
        self.has_factors = has_factors
        self._tokens: dict[str, list[int]] = {}
        self._special = frozenset(map(int, tokenizer.all_special_ids)) - {tokenizer.unk_token_id}
        self._user_marks, self._item_marks = self._marks()
        ends = (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id)
        self._nothing = next((int(token) for token in ends if token is not None), PAD)
        for name, budget, marks in (
            ("user_tokens", user_tokens, self._user_marks),
            ("item_tokens", item_tokens, self._item_marks),
        ):
            if budget <= _n(marks):
                raise ConfigError(f"prompts.{name}: got {budget}, expected > {_n(marks)}, which the marks alone take")

    @property
    def unknown_item(self) -> list[int]:
        """An item segment of one token that says nothing, for an item that was refused."""
        return [self._nothing]

    def user(self, profile: Fields, history: Sequence[Interaction]) -> UserSegment | None:
        """The user segment, or None when the text before the history does not fit the budget alone."""
        history = history[: self.history_length]
        head = self._encode_all([self.template.render_user(profile)])[0]  # not kept: as many as users
        room = self.user_tokens - _n(self._user_marks) - len(head)
        if room < 0:
            return None
        if not history:
            none = self._encode(self.template.render_no_history())
            return UserSegment(self._marked([*head, *none[:room]], self._user_marks), 0, self._told(head))
        ids: list[int] = []
        taken = 0
        for entry in history:
            tokens = self._entry(entry)
            if len(tokens) > room:
                continue  # longer than any room: left out alone, or nothing older would ever be shown
            if len(ids) + len(tokens) > room:
                break
            ids += tokens
            taken += 1
        return UserSegment(self._marked([*head, *ids], self._user_marks), len(history) - taken, self._told(head))

    def profiles(self, profiles: Sequence[Fields]) -> list[list[int]]:
        """`UserSegment.profile` of each user; none of one who is refused."""
        texts = [self.template.render_user(profile) for profile in profiles]
        room = self.user_tokens - _n(self._user_marks)
        distinct, known = list(dict.fromkeys(texts)), dict[str, list[int]]()
        for start in range(0, len(distinct), _BLOCK):
            part = distinct[start : start + _BLOCK]
            known |= zip(part, map(self._told, self._encode_all(part)), strict=True)
        return [known[text] if len(known[text]) <= room else [] for text in texts]

    def entry_tokens(self, item: Fields) -> int:
        """Tokens that a liked item takes in a history."""
        return len(self._entry(Interaction(item, True)))

    def user_text(self, text: str) -> list[int]:
        """A user segment from text that is already rendered; its end is cut, where the oldest history stands."""
        room = self.user_tokens - _n(self._user_marks)
        return self._marked(self._encode_all([text])[0][:room], self._user_marks)

    def answers(self) -> tuple[int, int]:
        """First token of the template's answer for liked and of that for disliked, behind a blank one that both have.

        Raises:
          ConfigError: the template has no answers, or both begin with the same token.
        """
        answer = self.template.answer
        if answer is None:
            raise ConfigError(
                "prompts.template: got no `answer`, expected cue, liked and disliked for model.head: answer"
            )
        liked, disliked = self._encode_all([answer.liked, answer.disliked])
        if liked[:1] == disliked[:1] and not self.tokenizer.decode(liked[:1]).strip():
            liked, disliked = liked[1:], disliked[1:]  # a mark of a word's beginning, which no cue could hold
        blank = [not self.tokenizer.decode(ids[:1]).strip() for ids in (liked, disliked)]
        if any(blank) or liked[0] == disliked[0]:
            raise ConfigError(
                f"prompts.template: answer: {answer.liked!r} and {answer.disliked!r} read as {liked} and {disliked}, "
                "expected different first tokens, of which none is blank; what both begin with belongs to the cue"
            )
        return liked[0], disliked[0]

    def items(self, items: Sequence[Fields]) -> list[list[int] | None]:
        """Item segments; None where an item does not fit the budget."""
        return self.item_texts([self.template.render_item(item) for item in items])

    def item_texts(self, texts: Sequence[str]) -> list[list[int] | None]:
        """As `items`, from text that is already rendered."""
        room = self.item_tokens - _n(self._item_marks)
        return [self._marked(ids, self._item_marks) if len(ids) <= room else None for ids in self._encode_all(texts)]

    def block(self, segments: Sequence[Sequence[int]]) -> TokenBlock:
        """Segments of one kind as one padded block."""
        lengths = np.fromiter(map(len, segments), dtype=np.int32, count=len(segments))
        ids = np.full((len(segments), int(lengths.max(initial=1))), PAD, dtype=np.int32)
        for row, segment in enumerate(segments):
            ids[row, : len(segment)] = segment
        return TokenBlock(ids, lengths)

    def probe(self) -> list[int]:
        """Tokens of a fixed text, by which a checkpoint recognises its tokenizer."""
        return self._encode_all([PROBE])[0]

    def _marks(self) -> tuple[Marks, Marks]:
        """Tokens before and after a user's text, and before and after an item's."""
        own = [FACTORS] if self.has_factors else []
        if self.layout.kind == "encoder":
            start = [_special(self.tokenizer, "cls_token_id", "bos_token_id"), *own]
            end = [_special(self.tokenizer, "sep_token_id", "eos_token_id")]
            return (start, end), (start, end)
        cue = self._encode_all([self.template.answer.cue])[0] if self.template.answer is not None else []
        if self.layout.kind == "encoder-decoder":
            end = [_special(self.tokenizer, "eos_token_id", "sep_token_id")]
            return (own, end), ([int(self.layout.decoder_start or 0), *own], cue)
        bos = self.tokenizer.bos_token_id
        return ([*([] if bos is None else [int(bos)]), *own], []), (own, cue)

    def _marked(self, ids: list[int], marks: Marks) -> list[int]:
        return [*marks[0], *ids, *marks[1]] or [self._nothing]  # a segment of no token could not be attended to

    def _told(self, head: list[int]) -> list[int]:
        return [] if head == self._encode(self.template.render_user({})) else head

    def _entry(self, entry: Interaction) -> list[int]:
        return self._encode(self.template.render_entry(entry.item, is_liked=entry.is_liked, value=entry.value))

    def _encode(self, text: str) -> list[int]:
        known = self._tokens.get(text)
        if known is None:
            if len(self._tokens) >= _MOST_KNOWN:
                self._tokens.clear()
            known = self._tokens[text] = self._encode_all([text])[0]
        return known

    def _encode_all(self, texts: Iterable[str]) -> list[list[int]]:
        texts = list(texts)
        if not texts:
            return []
        # A title "[SEP]" is text as any other: only this module places special tokens.
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        ids: list[list[int]] = self.tokenizer(texts, **options)["input_ids"]
        for place, own in enumerate(ids):
            if not self._special.isdisjoint(own):  # of some vocabularies "</s>" is a word as well
                broken = texts[place]
                for token in self.tokenizer.all_special_tokens:
                    broken = broken.replace(token, f"{token[:1]} {token[1:]}")
                again = self.tokenizer([broken], **options)["input_ids"][0]
                ids[place] = [token for token in again if token not in self._special]
        return ids


def _n(marks: Marks) -> int:
    return len(marks[0]) + len(marks[1])


def _special(tokenizer: Any, *names: str) -> int:
    for name in names:
        value = getattr(tokenizer, name, None)
        if value is not None:
            return int(value)
    raise CheckpointError(f"tokenizer: got none of {', '.join(names)}, expected one to mark the segments")
