"""Segments of decoders and encoder-decoders: their marks, the answer cue, and that only the oldest history is cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flmrec_spark.errors import ConfigError
from flmrec_spark.lm.segments import Interaction, Layout, Segmenter
from flmrec_spark.prompts import load_template
from tests.tiny import DECODERS, ENCODER_DECODERS, family_tokenizer

TEMPLATE = load_template("en")
LAYOUTS = {
    **{family: Layout("decoder") for family in DECODERS},
    **{family: Layout("encoder-decoder", 0) for family in ENCODER_DECODERS},
}
BOS, EOS, START = 2, 3, 0
STARTS = {family: [BOS] for family in ("gpt2", "llama", "mistral")}


def segmenter(family: str, *, user_tokens: int = 40, item_tokens: int = 20, template=TEMPLATE) -> Segmenter:
    return Segmenter(
        family_tokenizer(family),
        template,
        user_tokens=user_tokens,
        item_tokens=item_tokens,
        history_length=6,
        layout=LAYOUTS[family],
    )


def tokens(family: str, text: str) -> list[int]:
    return family_tokenizer(family)(text, add_special_tokens=False)["input_ids"]


def liked(title: str) -> Interaction:
    return Interaction({"item_id": "1", "title": title}, is_liked=True)


@pytest.mark.parametrize("family", LAYOUTS)
def test_a_user_has_a_start_or_an_end_where_the_family_knows_one(family):
    segment = segmenter(family).user({"age": 7}, [liked("ab")])
    text = tokens(family, "user: age: 7; liked ab;")
    assert segment is not None
    end = [EOS] if family in ENCODER_DECODERS else []
    assert segment.ids == [*STARTS.get(family, []), *text, *end]


@pytest.mark.parametrize("family", LAYOUTS)
def test_an_item_ends_with_the_answer_cue(family):
    start = [START] if family in ENCODER_DECODERS else []
    item = {"item_id": "1", "title": "ab"}
    assert segmenter(family).items([item]) == [[*start, *tokens(family, "ab Answer:")]]
    bare = segmenter(family, template=replace(TEMPLATE, answer=None))
    assert bare.items([item]) == [[*start, *tokens(family, "ab")]]


@pytest.mark.parametrize("family", LAYOUTS)
def test_the_cue_and_the_marks_count_in_the_budget(family):
    n_marks = 7 + (family in ENCODER_DECODERS)  # " Answer:" is seven letters
    fitting, cut = segmenter(family, item_tokens=n_marks + 3).item_texts(["abc", "abcd"])
    assert fitting is not None
    assert len(fitting) == n_marks + 3
    assert cut is None
    with pytest.raises(ConfigError, match=rf"prompts.item_tokens: got {n_marks}, expected > {n_marks}"):
        segmenter(family, item_tokens=n_marks)


histories = st.lists(st.builds(liked, st.text(alphabet="abcxyz", min_size=1, max_size=12)), min_size=1)


@pytest.mark.parametrize("family", LAYOUTS)
@settings(max_examples=30)
@given(history=histories, user_tokens=st.integers(min_value=16, max_value=60))
def test_over_long_input_loses_its_oldest_history_alone(family, history, user_tokens):
    own = segmenter(family, user_tokens=user_tokens)
    segment = own.user({"age": 7}, history)
    assert segment is not None
    assert len(segment.ids) <= user_tokens
    head, end = tokens(family, "user: age: 7;"), [EOS] if family in ENCODER_DECODERS else []
    room = user_tokens - len(STARTS.get(family, [])) - len(head) - len(end)
    entries = [tokens(family, f" liked {entry.item['title']};") for entry in history[:6]]
    fitting = [entry for entry in entries if len(entry) <= room]  # others are longer than all the room there is
    kept = len(history[:6]) - segment.n_cut
    assert segment.ids == [
        *STARTS.get(family, []),
        *head,
        *[token for entry in fitting[:kept] for token in entry],
        *end,
    ]
    if kept < len(fitting):  # the next older entry would not have fitted
        assert len(segment.ids) + len(fitting[kept]) > user_tokens


@pytest.mark.parametrize("family", LAYOUTS)
def test_no_segment_is_empty(family):
    own = segmenter(family, template=replace(TEMPLATE, answer=None))
    assert len(own.user_text("")) == 1
    assert [len(ids or []) for ids in own.item_texts([""])] == [1]
    assert len(own.unknown_item) == 1


def test_the_first_letters_of_the_answers_are_their_tokens():
    own = segmenter("gpt2")
    assert own.answers() == (tokens("gpt2", "y")[0], tokens("gpt2", "n")[0])


def test_a_template_without_answers_has_none():
    with pytest.raises(ConfigError, match=r"got no `answer`, expected cue, liked and disliked for model.head: answer"):
        segmenter("gpt2", template=replace(TEMPLATE, answer=None)).answers()
