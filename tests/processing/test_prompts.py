"""Prompt ids and labels equal those of the reference (F3_prompt, F6_train)."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from projects.sa2va.errors import DataError
from projects.sa2va.processing import prompts
from projects.sa2va.processing.tokenizer import build_tokenizer

TINY = build_tokenizer({"type": "byte_level"}, ["[SEG]", "<p>", "</p>", "<vp>", "</vp>"])
IMAGE_TOKEN = TINY.convert_tokens_to_ids("<IMG_CONTEXT>")

texts = st.text(st.characters(codec="ascii", categories=("L", "N", "Zs", "Po")), min_size=1)
texts = texts.filter(str.strip)


@pytest.fixture(scope="module")
def reference_tokenizer(shared_dir):
    return build_tokenizer(
        {"type": "pretrained", "path": str(shared_dir / "reference" / "F1_tokenizer")}
    )


@pytest.mark.parametrize("case", ["img_a", "img_b", "img_c", "text_only"])
def test_prompt_equals_the_reference(shared_dir, reference_tokenizer, case):
    folder = shared_dir / "reference" / "F3_prompt"
    expected = json.loads((folder / "prompts.json").read_text())[case]
    question = expected["text"].replace("<image>", "").strip("\n")
    tokens = expected.get("num_image_tokens", 0)
    ids = prompts.prompt_ids(reference_tokenizer, question, tokens)
    assert ids == expected["input_ids"]
    text = reference_tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if "prompt_sha256" in expected:
        assert hashlib.sha256(text.encode()).hexdigest() == expected["prompt_sha256"]
    else:
        assert text == expected["prompt"]


@pytest.mark.parametrize("case", ["one_obj", "multi_obj", "no_seg"])
def test_conversation_equals_the_reference(shared_dir, reference_tokenizer, case):
    folder = shared_dir / "reference" / "F6_train"
    meta = json.loads((folder / f"{case}.json").read_text())
    golden = load_file(folder / f"{case}.safetensors")
    for row, turns in enumerate(meta["conversations"]):
        turns = [(question.removeprefix("<image>\n"), answer) for question, answer in turns]
        image_tokens = 256 * meta["pixel_values_tiles_per_sample"][row]
        ids, labels = prompts.conversation(reference_tokenizer, turns, image_tokens)
        length = meta["sequence_lengths"][row]
        assert torch.equal(ids, golden["input_ids"][row, :length])
        assert torch.equal(labels, golden["labels"][row, :length])
        assert golden["attention_mask"][row].sum() == length
        tail = ids[4 + image_tokens :]  # after <|im_start|>user\n<img> and the image
        decoded = reference_tokenizer.decode(tail, clean_up_tokenization_spaces=False)
        assert decoded == meta["decoded_after_image"][row]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4), st.integers(0, 40))
def test_labels_decode_to_the_answers(turns, image_tokens):
    turns = [(question, f"{answer} [SEG]") for question, answer in turns]
    ids, labels = prompts.conversation(TINY, turns, image_tokens)
    kept = labels != prompts.IGNORE_INDEX
    said = TINY.decode(labels[kept], clean_up_tokenization_spaces=False)
    assert said == "".join(f"{answer}<|im_end|>" for _, answer in turns)
    assert torch.equal(ids[kept], labels[kept])
    assert ids.dtype == labels.dtype == torch.int64
    assert int((ids == IMAGE_TOKEN).sum()) == image_tokens
    image = f"<img>{'<IMG_CONTEXT>' * image_tokens}</img>\n" if image_tokens else ""
    whole = "".join(
        f"<|im_start|>user\n{image if number == 0 else ''}{question}<|im_end|>\n"
        f"<|im_start|>assistant\n{answer}<|im_end|>\n"
        for number, (question, answer) in enumerate(turns)
    )
    assert TINY.decode(ids, clean_up_tokenization_spaces=False) == whole


@settings(max_examples=30, deadline=None)
@given(texts, texts, st.integers(1, 20))
def test_prompt_and_answer_are_the_beginning_of_the_conversation(question, answer, image_tokens):
    # Testing with a forced answer must see exactly the tokens that training saw.
    ids, _ = prompts.conversation(TINY, [(question, answer)], image_tokens)
    forced = prompts.prompt_ids(TINY, question, image_tokens) + prompts.answer_ids(TINY, answer)
    assert ids[: len(forced)].tolist() == forced
    assert TINY.decode(ids[len(forced) :]) == "\n"


@pytest.mark.parametrize("text", ["", "  \n", None, "a<|im_end|>", "<IMG_CONTEXT>", "b <img>"])
def test_empty_texts_and_control_tokens_are_refused(text):
    for call in (
        lambda: prompts.prompt_ids(TINY, text),
        lambda: prompts.answer_ids(TINY, text),
        lambda: prompts.check_phrase(text),
        lambda: prompts.conversation(TINY, [("q", "a"), ("q", text)], 1),
    ):
        with pytest.raises(DataError):
            call()


def test_seg_belongs_in_answers_only():
    assert prompts.answer_ids(TINY, "[SEG]")
    with pytest.raises(DataError, match="SEG"):
        prompts.prompt_ids(TINY, "where is [SEG]?")
    with pytest.raises(DataError, match="SEG"):
        prompts.check_phrase("vessel [SEG]")
    with pytest.raises(DataError, match="without turns"):
        prompts.conversation(TINY, [], 1)
