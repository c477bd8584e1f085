"""What the buttons do: one model call a run, none for a cut, nothing left of an upload."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projects.sa2va.errors import ConfigError, DataError
from projects.sa2va.inference.page.desk import Desk
from projects.sa2va.inference.page.files import PrivateFolder

from .conftest import EXAMPLE, LIMITS, frame, png
from .standin import StandIn
from .test_drawing import decoded


def upload(desk: Desk, content: bytes, name: str = "Smith.png"):
    return desk.folder.put_upload(io.BytesIO(content), name)


def test_run_then_cut(desk):
    image = frame()
    path = upload(desk, png(image))
    token = desk.take(path)
    assert not path.exists() and desk.inferencer.asked == []
    assert not desk.is_result(token)
    with pytest.raises(DataError, match="run the model first"):
        desk.cut(token, 0.5)
    np.testing.assert_array_equal(decoded(desk.view(token, "frame", None)), image)
    result = desk.run(token, "blood vessel", 0.3)
    assert desk.inferencer.asked == [(image.shape, "blood vessel")]
    assert desk.is_result(result) and not desk.has(token)
    for threshold in (0.1, 0.5, 0.9):
        mask = image[..., 0].astype(np.float32) / 255 >= threshold
        np.testing.assert_array_equal(desk.cut(result, threshold).mask, mask)
        np.testing.assert_array_equal(decoded(desk.file(result, "mask.png", threshold)) > 0, mask)
    default = decoded(desk.file(result, "mask.png", None)) > 0
    np.testing.assert_array_equal(default, desk.cut(result, desk.inferencer.threshold).mask)
    assert len(desk.inferencer.asked) == 1
    again = desk.run(result, "catheter", 0.3)  # another question about the same frame
    assert desk.inferencer.asked[1] == (image.shape, "catheter") and not desk.has(result)
    desk.forget(again)
    assert not desk.has(again)


def test_a_question_about_several_phrases_is_refused(desk, monkeypatch):
    (one,) = desk.inferencer([frame()], "vein")
    several = replace(one, phrases=["artery", "vein"])
    monkeypatch.setattr(StandIn, "__call__", lambda *_, **__: [several])
    with pytest.raises(DataError, match="a question about 2 phrases: artery, vein"):
        desk.run(desk.take_example(0), "Please segment the artery and the vein.", 0.5)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.001, 1), st.floats(0.001, 1))
def test_a_higher_threshold_never_adds_vessel(one, other):
    desk = Desk(StandIn(), LIMITS, None, examples=[frame()])
    token = desk.run(desk.take_example(0), "vessel", 0.5)
    low, high = sorted((one, other))
    assert not (desk.cut(token, high).mask & ~desk.cut(token, low).mask).any()


def test_what_is_wrong_is_said(desk):
    with pytest.raises(DataError, match="upload one, or choose an example"):
        desk.run(None, "vessel", 0.5)
    token = desk.take_example(0)
    with pytest.raises(DataError, match="501 characters"):
        desk.run(token, "v" * 501, 0.5)
    for threshold in (0, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="threshold"):
            desk.run(token, "vessel", threshold)
    assert desk.inferencer.asked == [] and desk.has(token)
    refused = desk.take(upload(desk, png(np.full((4, 4, 3), 13, np.uint8))))
    with pytest.raises(DataError, match="cannot be asked about"):
        desk.run(refused, "vessel", 0.5)


def test_a_bad_upload_is_removed_too(desk):
    path = upload(desk, b"a letter")
    with pytest.raises(DataError, match="not an image"):
        desk.take(path)
    assert not path.exists()


def test_predict_keeps_nothing(desk):
    result = desk.predict(upload(desk, png(frame())), "vessel", None)
    assert result.threshold == desk.inferencer.threshold
    assert desk.predict(upload(desk, png(frame())), "vessel", 0.7).threshold == 0.7
    assert len(desk._store) == 0 and [p.name for p in desk.folder.root.rglob("*")] == ["short"]


def test_memory_is_bounded(tmp_path):
    image = frame(100, 100)
    size = 8 * image.shape[0] * image.shape[1]
    desk = Desk(StandIn(), LIMITS, PrivateFolder(tmp_path), keep_bytes=3 * size, examples=[image])
    tokens = [desk.run(desk.take_example(0), "vessel", 0.5) for _ in range(6)]
    assert [desk.has(token) for token in tokens] == [False] * 3 + [True] * 3
    assert desk._store.size == 3 * size
    kept = desk._store.get(tokens[-1])
    held = kept.image.nbytes + kept.result.probabilities.nbytes + kept.result.mask.nbytes
    assert kept.size == held


def test_examples(desk, tmp_path):
    path = tmp_path / "Smith.png"
    path.write_bytes(png(frame(300, 400)))
    desk.examples.append(path)
    assert [image.shape for image in desk.thumbnails()] == [(40, 30, 3), (150, 200, 3)]
    np.testing.assert_array_equal(desk.image(desk.take_example(0)), EXAMPLE)
    token = desk.take_example(1)
    assert desk.image(token).shape == (300, 400, 3) and path.exists()
