"""One question about several phrases: a map for each, or a report; answers that are chosen."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

from projects.sa2va.errors import DataError
from projects.sa2va.inference import Sa2VAInferencer
from projects.sa2va.inference.folder import predict_folder
from projects.sa2va.inference.questions import Question, check_own_words
from projects.sa2va.processing import Sa2VAProcessor

QUESTION = "Please segment the left artery, the vein and the ramus in this image."
PHRASES = ["left artery", "vein", "ramus"]


@pytest.fixture(scope="module")
def choosing(trained) -> Sa2VAInferencer:
    options = {"model.answer_mode": "choice"}
    return Sa2VAInferencer(trained / "run", batch_size=2, cfg_options=options)


def test_a_question_about_several_phrases_gives_a_map_for_each(inferencer, frames, tmp_path):
    done = predict_folder(
        inferencer, frames[:2], [QUESTION, "stent"], tmp_path / "out", outputs=["mask", "csv"]
    )
    assert done.predicted == 2 and not done.unmapped
    with open(tmp_path / "out/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["phrase"] for row in rows] == [*PHRASES, "stent"] * 2
    assert rows[0]["answer"] == "left artery: [SEG]; vein: [SEG]; ramus: [SEG]."
    assert rows[0]["presence"] == rows[0]["unmapped"] == ""
    assert len({row["mask"] for row in rows}) == 8
    settings = json.loads((tmp_path / "out/run.json").read_text())
    assert settings["questions"] == [QUESTION, "Please segment the stent in this image."]
    (result,) = inferencer(frames[0], QUESTION)
    assert result.phrases == PHRASES and result.presence is None and result.unmapped == []
    assert result.probabilities.shape == (3, 64, 64)
    assert not np.array_equal(result.probabilities[0], result.probabilities[1])


def test_an_answer_that_cannot_be_mapped_is_reported(inferencer, frames, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(
        "projects.sa2va.inference.inferencer.print_log", lambda text, **more: said.append(text)
    )
    model = inferencer._pipeline.model
    monkeypatch.setattr(model, "answer_mode", "generate")
    words = model.processor.tokenizer.encode("Sure, [SEG].<|im_end|>")
    monkeypatch.setattr(
        model.mllm, "generate", lambda prompts, *_: torch.tensor([words] * len(prompts))
    )
    (result,) = inferencer(frames[0], [QUESTION, "stent"])
    assert result.unmapped == PHRASES and not result.masks[:3].any()
    assert result.seg_emitted == [False, False, False, True]
    assert "1 images with an answer that cannot be mapped" in said[0] and "Sure, [SEG]." in said[0]
    done = predict_folder(inferencer, frames[:1], QUESTION, tmp_path / "out", outputs=["csv"])
    assert list(done.unmapped) == [frames[0].name] and "cannot be mapped" in done.text()
    with open(tmp_path / "out/predictions.csv", newline="") as file:
        assert [row["unmapped"] for row in csv.DictReader(file)] == ["True"] * 3


def test_a_choice_has_a_presence(choosing, frames, tmp_path):
    (result,) = choosing(frames[0], ["stent", QUESTION])
    assert len(result.presence) == 4 and all(0 <= p <= 1 for p in result.presence)
    for presence, emitted, mask in zip(
        result.presence, result.seg_emitted, result.probabilities, strict=True
    ):
        assert (presence >= 0.5) == emitted == bool(mask.any())
    done = predict_folder(choosing, frames[:1], "stent", tmp_path / "out", outputs=["csv"])
    with open(tmp_path / "out/predictions.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert done.predicted == 1 and float(row["presence"]) == pytest.approx(result.presence[0])


def test_a_choice_needs_a_phrase(choosing, frames, tmp_path):
    text = "Where is the stent?"
    for ask in (
        lambda: choosing(frames[0], text),
        lambda: predict_folder(choosing, frames, text, tmp_path / "out"),
    ):
        with pytest.raises(DataError, match="in words of its own") as caught:
            ask()
        assert "answer_mode=generate" in caught.value.fix
    assert not (tmp_path / "out").exists()


def test_so_does_a_forced_answer_that_names_it():
    question = [Question(("?",), "Where is the stent?", own_words=True)]
    plain = Sa2VAProcessor({"type": "byte_level"})
    naming = Sa2VAProcessor({"type": "byte_level"}, answer="The {phrase}: [SEG].")
    for mode, processor in (("generate", naming), ("forced", plain), ("generate", plain)):
        check_own_words(question, mode, processor)
    for mode, processor in (("forced", naming), ("choice", plain)):
        with pytest.raises(DataError, match=rf"in words of its own with .*'{mode}'"):
            check_own_words(question, mode, processor)


def test_one_phrase_twice_is_refused(inferencer, frames):
    with pytest.raises(DataError, match="the same phrase twice: vein"):
        inferencer(frames[0], [QUESTION, "vein"])
