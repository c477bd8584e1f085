"""Questions about several phrases, and answers that are read back."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from projects.sa2va.errors import ConfigError, DataError
from projects.sa2va.processing import Sa2VAProcessor

BYTE_LEVEL = {"type": "byte_level"}
PROCESSOR = Sa2VAProcessor(BYTE_LEVEL)
TEMPLATES = PROCESSOR.templates
# Also what the grammar is made of (colons, semicolons, 'none') and signs of regular expressions.
PHRASES = st.lists(
    st.text(alphabet="ab :;.none()*é", min_size=1, max_size=8).map(str.strip).filter(bool),
    min_size=2,
    max_size=4,
    unique=True,
)


@settings(max_examples=150, deadline=None)
@given(PHRASES, st.data())
def test_an_answer_says_what_it_was_made_of(phrases, data):
    there = data.draw(st.lists(st.booleans(), min_size=len(phrases), max_size=len(phrases)))
    ids = PROCESSOR.answer_ids_for(phrases, there)
    assert TEMPLATES.read(PROCESSOR.decode(ids), phrases) == there
    assert int((ids == PROCESSOR.seg_token_id).sum()) == sum(there)
    other = data.draw(st.lists(st.booleans(), min_size=len(phrases), max_size=len(phrases)))
    said = TEMPLATES.answer_for(phrases, other)
    assert TEMPLATES.read(said, phrases) == other
    assume(phrases[0] != phrases[-1])
    assert TEMPLATES.read(said, phrases[::-1]) is None


@settings(max_examples=100, deadline=None)
@given(PHRASES)
def test_a_question_gives_its_phrases_back(phrases):
    question, _ = PROCESSOR.turn(phrases, [True] * len(phrases))
    assert TEMPLATES.phrases_of(question) == phrases


def test_the_texts():
    three = ["left main artery", "first diagonal branch", "ramus"]
    assert PROCESSOR.turn(three, [True, False, True]) == (
        "Please segment the left main artery, the first diagonal branch and the ramus in this "
        "image.",
        "left main artery: [SEG]; first diagonal branch: none; ramus: [SEG].",
    )
    question = "Please segment the ramus in this image."
    assert PROCESSOR.turn(["ramus"], [True]) == (question, "Sure, [SEG].")
    assert PROCESSOR.turn(["ramus"], [False]) == (question, "There is no ramus in this image.")


@pytest.mark.parametrize(
    "answer",
    [
        "a: [SEG]; b: [SEG]",  # no end
        "b: [SEG]; a: [SEG].",
        "a: [SEG].",
        "Sure, [SEG].",
        "a: [SEG]; b: [SEG]; c: none.",
        "a: [SEG] b: none.",
        "a: maybe; b: none.",
    ],
)
def test_other_answers_are_not_guessed_at(answer):
    assert TEMPLATES.read(answer, ["a", "b"]) is None


def test_blanks_around_seg_do_not_matter():
    for said in ("a:[SEG]; b: none.<|im_end|>", " a:  [SEG] ; b: none. "):
        assert TEMPLATES.read(said, ["a", "b"]) == [True, False]


@pytest.mark.parametrize(
    ("question", "phrases"),
    [
        ("Please segment the artery, vein and all in this image.", ["artery, vein and all"]),
        ("Please segment the a and the  in this image.", ["a and the"]),
        ("Where is the a and the b?", None),
        ("Please segment the  in this image.", None),
    ],
)
def test_what_is_no_list_is_one_phrase(question, phrases):
    assert TEMPLATES.phrases_of(question) == phrases


def test_a_comma_before_the_and_is_no_part_of_a_phrase():
    question = "Please segment the a, the b, and the c in this image."
    assert TEMPLATES.phrases_of(question) == ["a", "b", "c"]
    question = "Please segment the a, and the c in this image."
    assert TEMPLATES.phrases_of(question) == ["a", "c"]


def test_a_phrase_that_is_asked_for_twice_is_there_twice():
    question = "Please segment the a, the b and the a in this image."
    assert TEMPLATES.phrases_of(question) == ["a", "b", "a"]


@pytest.mark.parametrize(
    "phrases",
    [["a", "a"], ["a", "A "], ["a b", "a  b"], ["a and the b", "c"], ["a, the b", "c"], []],
)
def test_phrases_that_cannot_be_asked_together(phrases):
    with pytest.raises(DataError):
        TEMPLATES.question_for(phrases)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("answer", "The {phrase} is {phrase}: [SEG].", "at most once"),
        ("absent_answer", "No [SEG].", r"without \[SEG\]"),
        ("absent_answer", "", r"without \[SEG\]"),
        ("absent_answer", "no {phrase}, no {phrase}", "at most once"),
        ("absent_answer", "None<|im_end|>", "absent_answer"),
        ("clauses", ["{phrase}: [SEG]"], "two texts"),
        ("clauses", ["{phrase}: [SEG]", "{phrase}"], "neither the beginning of the other"),
        ("clauses", ["{phrase}: yes", "{phrase}: no"], r"with one \[SEG\]"),
        ("clauses", ["{phrase}: [SEG]", "none"], "with {phrase} once"),
        ("separators", ", ", "two texts"),
        ("separators", [", ", ""], "two texts"),
    ],
)
def test_templates_that_cannot_be(key, value, said):
    with pytest.raises(ConfigError, match=said) as caught:
        Sa2VAProcessor(BYTE_LEVEL, **{key: value})
    assert f"processor.{key}" in str(caught.value)
