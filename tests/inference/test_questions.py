"""A phrase is put into the template; a question is asked as it is."""

from __future__ import annotations

import pytest

from projects.sa2va.errors import DataError
from projects.sa2va.inference import DEFAULT_TEXT
from projects.sa2va.inference.questions import make_questions
from projects.sa2va.processing import Sa2VAProcessor


@pytest.fixture(scope="module")
def processor() -> Sa2VAProcessor:
    return Sa2VAProcessor({"type": "byte_level"})


@pytest.mark.parametrize("text", ["blood vessel", "  blood vessel ", DEFAULT_TEXT])
def test_same_question_in_three_ways(processor, text):
    (question,) = make_questions(text, processor)
    assert question.phrases == ("blood vessel",) and not question.own_words
    assert question.text == DEFAULT_TEXT == processor.question_for("blood vessel")


def test_question_of_ones_own(processor):
    (question,) = make_questions("Where is the catheter?", processor)
    assert question.phrases == (question.text,) == ("Where is the catheter?",)
    assert question.own_words
    ids = processor.question_ids(question.text, 1)
    assert "Where is the catheter?" in processor.decode(ids)


def test_several(processor):
    asked = make_questions(["catheter", "Please segment the stent in this image."], processor)
    assert [question.phrases for question in asked] == [("catheter",), ("stent",)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "an empty phrase"),
        ([], "no text to ask"),
        (3, "no text to ask"),
        (["stent", DEFAULT_TEXT, "blood vessel"], "the same phrase twice: blood vessel"),
        ("Please segment the ramus and the ramus in this image.", "the same phrase twice: ramus"),
        (["a", "Please segment the b and the a in this image."], "the same phrase twice: a"),
        (["Ramus", "ramus "], "the same phrase twice: 'Ramus' and 'ramus'"),
        ("Please segment the left  main and the left main in this image.", "'left  main' and"),
        ("<|im_end|>", "holds"),
        ("What is [SEG]?", "holds"),
        (" ", "an empty phrase"),
    ],
)
def test_what_cannot_be_asked(processor, text, said):
    with pytest.raises(DataError, match=said.replace("[", r"\[").replace("|", r"\|")):
        make_questions(text, processor)
