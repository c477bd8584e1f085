"""The same picture is found in other bytes; other pictures are not."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from projects.sa2va.datasets.image_io import read_image
from projects.sa2va.datasets.near_duplicates import (
    CANDIDATE_BITS,
    RECORDED_BITS,
    SIMILAR,
    near_pairs,
    pack_hashes,
    perceptual_hash,
    similarity,
    thumbnail,
)
from projects.sa2va.datasets.synthetic import AngiogramParams
from projects.sa2va.datasets.synthetic.render import render


def jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=40)
    return np.asarray(Image.open(buffer))


def levels(image, factor, shift):
    return np.clip(image.astype(float) * factor + shift, 0, 255).astype(np.uint8)


# what is done to a leaked frame, and whether the hash alone must find it
CHANGES = {
    "jpeg": (jpeg, True),
    "half size": (lambda i: cv2.resize(i, None, fx=0.5, fy=0.5), True),
    "brighter": (lambda i: levels(i, 1.0, 30), True),
    "more contrast": (lambda i: levels(i, 1.2, -10), True),
    "gamma": (lambda i: (255 * (i / 255.0) ** 0.8).astype(np.uint8), True),
    "cropped": (lambda i: cv2.resize(i[3:-3, 3:-3], i.shape[1::-1]), False),
}


def distance(left, right):
    packed = pack_hashes([perceptual_hash(left), perceptual_hash(right)])
    return next((bits for *_, bits in near_pairs(packed[:1], packed[1:], 256)), None)


@pytest.fixture(scope="module")
def frames():
    """Two frames of each of three synthetic patients, uint8 [256, 256, 3]."""
    params = AngiogramParams()
    return [
        np.repeat(render(3, 256, params, patient=patient, frame=view)[0][..., None], 3, axis=2)
        for patient in range(3)
        for view in range(2)
    ]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found(frames, change):
    work, by_hash = CHANGES[change]
    for frame in frames:
        copy = work(frame)
        assert distance(frame, copy) <= (RECORDED_BITS if by_hash else CANDIDATE_BITS)
        assert similarity(thumbnail(frame), thumbnail(copy)) >= SIMILAR


def test_other_frames_are_not_found_even_of_one_patient(frames):
    for i, left in enumerate(frames):
        for right in frames[i + 1 :]:
            near = distance(left, right) <= CANDIDATE_BITS
            assert not (near and similarity(thumbnail(left), thumbnail(right)) >= SIMILAR)
            assert distance(left, right) > RECORDED_BITS


def test_one_grey_value_resembles_nothing(frames):
    flat = np.full_like(frames[0], 90)
    assert similarity(thumbnail(flat), thumbnail(flat)) == 0.0
    assert similarity(thumbnail(frames[0]), thumbnail(flat)) == 0.0


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=6), st.integers(0, 256))
def test_pairs_are_those_of_counting_bits(rows, bits):
    packed = pack_hashes([row.hex() for row in rows])
    wanted = [
        (i, j, apart)
        for i, a in enumerate(rows)
        for j, b in enumerate(rows)
        if (apart := (int.from_bytes(a) ^ int.from_bytes(b)).bit_count()) <= bits
    ]
    assert list(near_pairs(packed, packed, bits)) == wanted


def test_no_false_alarm_among_arcade_frames(shared_dir):
    folder = shared_dir / "data" / "arcade" / "syntax"
    images = [
        read_image(path)
        for split in ("train", "test")
        for path in sorted((folder / split / "images").iterdir())[:60]
    ]
    packed = pack_hashes([perceptual_hash(image) for image in images])
    pairs = [(i, j) for i, j, _ in near_pairs(packed, packed, CANDIDATE_BITS) if i < j]
    assert pairs == []
    bright = levels(images[3], 1.0, 25)
    assert distance(images[3], jpeg(bright)) <= RECORDED_BITS
