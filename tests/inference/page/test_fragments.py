"""What is shown: escaped, with links that hold the threshold, without names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from projects.sa2va.errors import DataError
from projects.sa2va.inference.page import fragments
from projects.sa2va.inference.page.drawing import FILES, VIEWS

from .standin import StandIn


def shown(answer: str = "Sure, [SEG].", shape: tuple[int, int] = (4, 5)):
    image = np.zeros((*shape, 3), np.uint8)
    image[0] = 255
    return StandIn(answer=answer)([image], "vessel", threshold=0.25)[0]


def test_result():
    text = fragments.result("TOKEN", shown())
    for kind in VIEWS:
        assert f"results/TOKEN/view/{kind}.png?threshold=0.25" in text
    for name in FILES:
        assert f'href="results/TOKEN/file/{name}?threshold=0.25" download="vessel_{name}"' in text
    assert "25.00 %" in text and "5 of 20 pixels" in text and "5 x 4" in text
    assert "holds [SEG]" in text and "v-note" not in text


def test_answers_are_escaped():
    text = fragments.result("TOKEN", shown("<script>alert(1)</script>"))
    assert "&lt;script&gt;" in text and "<script" not in text


def test_an_answer_without_seg_is_explained():
    assert "so there is no mask" in fragments.result("TOKEN", shown("I see nothing."))
    absent = replace(shown("There is no vessel in this image."), _presence=[0.12])
    assert "its presence 0.12 is below" in fragments.result("TOKEN", absent)
    assert "no language" in fragments.numbers(shown(""))["Model's answer"]


def test_small_frames_have_square_pixels():
    assert "v-small" in fragments.frame("TOKEN", (511, 9, 3))
    assert "v-small" not in fragments.frame("TOKEN", (9, 512, 3))


def test_message_has_three_parts():
    text = fragments.message(DataError("a <b>", "c", "d"))
    assert 'role="alert"' in text and "a &lt;b&gt;" in text and "What to do" in text
