"""Prompts as tokens: budgets, and that nothing but the oldest history is ever cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from flmrec_spark.errors import CheckpointError, ConfigError
from flmrec_spark.lm import segments as module
from flmrec_spark.lm.segments import PAD, Interaction, Segmenter
from flmrec_spark.prompts import Answer, load_template
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
LETTER = {letter: TOKENIZER.convert_tokens_to_ids(letter) for letter in "abcxyz"}


def segmenter(*, template: str = "en", user_tokens: int = 40, item_tokens: int = 10, history: int = 6) -> Segmenter:
    return Segmenter(
        TOKENIZER,
        load_template(template),
        user_tokens=user_tokens,
        item_tokens=item_tokens,
        history_length=history,
    )


def liked(title: str) -> Interaction:
    return Interaction({"item_id": "1", "title": title}, is_liked=True, value=5.0)


def disliked(title: str) -> Interaction:
    return Interaction({"item_id": "1", "title": title}, is_liked=False, value=1.0)


def words(ids: list[int]) -> str:
    return TOKENIZER.decode(ids)


def n_tokens(text: str) -> int:
    return len(TOKENIZER(text, add_special_tokens=False)["input_ids"])


titles = st.text(alphabet="abcxyz é活", min_size=1, max_size=12).filter(str.strip)
histories = st.lists(
    st.builds(lambda title, is_liked: liked(title) if is_liked else disliked(title), titles, st.booleans())
)


@given(history=histories, user_tokens=st.integers(min_value=16, max_value=60), length=st.integers(1, 8))
def test_only_the_oldest_history_is_cut_and_the_cut_is_counted(history, user_tokens, length):
    own = segmenter(user_tokens=user_tokens, history=length)
    head = TOKENIZER("user: age: 7;", add_special_tokens=False)["input_ids"]
    segment = own.user({"age": 7}, history)
    assert segment is not None
    assert len(segment.ids) <= user_tokens
    if not history:
        return
    texts = [own.template.render_entry(one.item, is_liked=one.is_liked, value=None) for one in history[:length]]
    room = user_tokens - 2 - len(head)
    fitting = [text for text in texts if n_tokens(text) <= room]  # others are longer than all the room there is
    kept = len(history[:length]) - segment.n_cut
    assert 0 <= kept <= len(fitting)
    expected = [token for text in fitting[:kept] for token in TOKENIZER(text, add_special_tokens=False)["input_ids"]]
    assert segment.ids == [TOKENIZER.cls_token_id, *head, *expected, TOKENIZER.sep_token_id]
    if kept < len(fitting):  # the next older entry would not have fitted
        assert len(segment.ids) + n_tokens(fitting[kept]) > user_tokens


def test_an_entry_longer_than_all_the_room_hides_no_older_one():
    segment = segmenter(user_tokens=2 + 8 + 6).user({}, [liked("x" * 40), liked("ab"), liked("y" * 40)])
    assert segment is not None
    assert (words(segment.ids), segment.n_cut) == ("[CLS] liked ab ; [SEP]", 2)


def test_an_entry_is_kept_whole_or_not_at_all():
    full = segmenter(user_tokens=2 + 11 + 7).user({}, [liked("ab"), liked("c")])
    assert full is not None
    # "user:" is left out with the empty profile; " liked ab;" is 8 tokens, " liked c;" is 7.
    assert (words(full.ids), full.n_cut) == ("[CLS] liked ab ; liked c ; [SEP]", 0)
    short = segmenter(user_tokens=2 + 8 + 6).user({}, [liked("ab"), liked("c")])
    assert short is not None
    assert (words(short.ids), short.n_cut) == ("[CLS] liked ab ; [SEP]", 1)


def test_history_beyond_the_longest_history_is_not_cut_by_the_budget():
    segment = segmenter(history=2).user({}, [liked("a"), disliked("b"), liked("c")])
    assert segment is not None
    assert (words(segment.ids), segment.n_cut) == ("[CLS] liked a ; disliked b ; [SEP]", 0)


def test_a_profile_that_fills_the_budget_alone_is_refused():
    profile = {"a": "xxxx"}  # "user: a: xxxx;" is 4 + 1 + 1 + 1 + 4 + 1 = 12 tokens
    assert segmenter(user_tokens=13).user(profile, [liked("b")]) is None
    fits = segmenter(user_tokens=14).user(profile, [liked("b")])
    assert fits is not None
    assert (words(fits.ids), fits.n_cut) == ("[CLS] user : a : xxxx ; [SEP]", 1)


def unigram(words: dict[str, float]) -> PreTrainedTokenizerFast:
    """Of SentencePiece's kind: a word begins with a mark, and "</s>" is a word of the vocabulary too."""
    vocabulary = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<pad>", 0.0), *words.items()]
    inner = Tokenizer(Unigram(vocabulary, unk_id=0))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    marks = {"unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **marks)


LETTERS = dict.fromkeys("▁abdefghiklnoprstuyHOT<>/:;", -5.0)


def of(tokenizer: PreTrainedTokenizerFast, **answer: str) -> Segmenter:
    template = load_template("en")
    if answer:
        template = replace(template, answer=Answer(cue=" Answer:", **answer))
    return Segmenter(tokenizer, template, user_tokens=60, item_tokens=60, history_length=3)


@pytest.mark.parametrize("title", ["Hot </s> dog", "</s>", "a<pad>b", "<s></s>", "dog </s></s>"])
def test_a_title_places_no_special_token_where_the_vocabulary_has_them_as_words(title):
    own = of(unigram(LETTERS))
    special = {1, 2, 3}
    assert special & set(own.tokenizer(title, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    (segment,) = own.items([{"item_id": "1", "title": title}])
    assert segment is not None
    assert (segment[0], segment[-1]) == (1, 2)
    assert len(segment) > 2 and not special & set(segment[1:-1])
    history = own.user({}, [Interaction({"item_id": "1", "title": title}, is_liked=True, value=None)])
    assert history is not None and not special & set(history.ids[1:-1])


def test_an_answer_that_begins_with_a_mark_alone_is_refused():
    """As ▁yes beside ▁, n, o: an untrained logit would be that of yes less that of a blank."""
    with pytest.raises(ConfigError, match="expected different first tokens, of which none is blank"):
        of(unigram({**LETTERS, "▁yes": -1.0}), liked=" yes", disliked=" no").answers()
    both = unigram({**LETTERS, "▁yes": -1.0, "▁no": -1.0})
    assert of(both, liked=" yes", disliked=" no").answers() == tuple(both.convert_tokens_to_ids(["▁yes", "▁no"]))
    apart = unigram(LETTERS)
    assert of(apart, liked=" yes", disliked=" no").answers() == tuple(apart.convert_tokens_to_ids(["y", "n"]))


def test_a_user_without_history_is_told_so():
    segment = segmenter().user({"age": 7}, [])
    assert segment is not None
    assert (words(segment.ids), segment.n_cut) == ("[CLS] user : age : 7 ; no history yet [SEP]", 0)


def test_the_chinese_template_renders_likes_dislikes_and_no_history():
    own = segmenter(template="zh")
    segment, without = own.user({}, [liked("红楼梦"), disliked("三体")]), own.user({}, [])
    assert segment is not None
    assert without is not None
    assert words(segment.ids).replace(" ", "") == "[CLS]喜欢《红楼梦》；不喜欢《三体》；[SEP]"
    assert words(without.ids).replace(" ", "") == "[CLS]暂无历史[SEP]"


def test_entries_are_tokenised_apart():
    """Joined as text the two entries would be one word, which reads as other tokens."""
    own = segmenter()
    object.__setattr__(own.template, "liked", type(own.template.liked)("{title}", "test"))
    segment = own.user({}, [liked("ab"), liked("c")])
    assert segment is not None
    assert segment.ids[1:-1] == [*TOKENIZER("ab", add_special_tokens=False)["input_ids"], LETTER["c"]]
    assert segment.ids[1:-1] != TOKENIZER("abc", add_special_tokens=False)["input_ids"]


@given(
    profile=st.fixed_dictionaries({"age": st.integers(0, 99)}), history=st.lists(st.builds(liked, titles), max_size=3)
)
def test_rendered_text_gives_the_tokens_of_the_prompt(profile, history):
    own = segmenter(user_tokens=200)
    text = own.template.render_user(profile) + "".join(
        own.template.render_entry(entry.item, is_liked=True, value=None) for entry in history
    )
    segment = own.user(profile, history)
    assert segment is not None
    assert own.user_text(text if history else text + own.template.render_no_history()) == segment.ids


def test_long_rendered_text_loses_its_end():
    assert words(segmenter(user_tokens=5).user_text("abcxyz")) == "[CLS] abc [SEP]"


def test_an_item_that_exceeds_its_budget_is_refused_and_others_are_whole():
    got = segmenter(item_tokens=5).items([{"item_id": "1", "title": title} for title in ("abc", "abcx", "a")])
    assert got[1] is None
    assert [words(ids) for ids in got if ids is not None] == ["[CLS] abc [SEP]", "[CLS] a [SEP]"]


def test_an_item_shows_its_title_and_attributes_but_not_its_id():
    got = segmenter(item_tokens=30).items([{"item_id": "0042", "title": "a", "genre": "x", "year": None}])
    assert got[0] is not None
    assert words(got[0]) == "[CLS] a ; genre : x [SEP]"


def test_a_block_is_padded_to_its_longest_row_and_cut_to_the_longest_taken():
    own = segmenter()
    block = own.block([[1, 2], [3, 4, 5], [6]])
    assert block.ids.tolist() == [[1, 2, PAD], [3, 4, 5], [6, PAD, PAD]]
    assert block.lengths.tolist() == [2, 3, 1]
    assert block.take(np.array([2, 0])).ids.tolist() == [[6, PAD], [1, 2]]
    assert len(own.block([])) == 0


def test_profiles_leave_nothing_in_memory():
    own = segmenter()
    for age in range(50):
        own.user({"age": age}, [liked("a")])
    assert len(own._tokens) == 2  # the entry, as many as items, and no profile at all: profiles are as many as users


def test_texts_whose_tokens_are_kept_have_a_limit(monkeypatch):
    monkeypatch.setattr(module, "_MOST_KNOWN", 3)
    own = segmenter()
    for place in range(20):  # as of a template that shows a {rating}, of which no two are alike
        history = [liked(f"a{place}"), disliked("b")]
        assert own.user({}, history) == segmenter().user({}, history)
        assert len(own._tokens) <= 3


def test_the_probe_tells_tokenizers_apart():
    other = segmenter()
    other.tokenizer = tiny_tokenizer()
    assert other.probe() == segmenter().probe()
    other.tokenizer.add_tokens(["story"])
    assert other.probe() != segmenter().probe()


def test_a_tokenizer_without_marks_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.cls_token = None
    with pytest.raises(CheckpointError, match="tokenizer: got none of cls_token_id, bos_token_id"):
        Segmenter(tokenizer, load_template("en"), user_tokens=8, item_tokens=8, history_length=1)


@pytest.mark.parametrize("mark", ["[SEP]", "[CLS]", "[PAD]", "[MASK]"])
def test_the_name_of_a_special_token_in_a_title_is_text(mark):
    made = segmenter(item_tokens=20)
    (ids,) = made.items([{"item_id": "1", "title": f"a {mark} b"}])
    special = set(TOKENIZER.all_special_ids) - {TOKENIZER.unk_token_id}
    assert [place for place, token in enumerate(ids) if token in special] == [0, len(ids) - 1]
    assert set(made.user({}, [liked(mark)]).ids[1:-1]).isdisjoint(special)
