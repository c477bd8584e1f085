"""The processor as configs build it: settings, shapes, pickling, and what is refused."""

from __future__ import annotations

import inspect
import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from projects.sa2va.datasets import FolderVesselDataset
from projects.sa2va.errors import ConfigError, DataError
from projects.sa2va.processing import Sa2VAProcessor

BYTE_LEVEL = {"type": "byte_level"}
TINY = Sa2VAProcessor(
    BYTE_LEVEL, tile_size=28, tokens_per_tile=4, min_tiles=1, max_tiles=6, image_size=64
)


def frame(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_prompt_and_answer_equal_the_reference(shared_dir):
    path = str(shared_dir / "reference" / "F1_tokenizer")
    processor = Sa2VAProcessor({"type": "pretrained", "path": path})
    cases = json.loads((shared_dir / "reference" / "F3_prompt" / "prompts.json").read_text())
    for name in ("img_a", "img_b", "img_c"):
        with Image.open(shared_dir / "reference" / "F2_preprocess" / f"{name}.png") as picture:
            tiles = processor.tiles(np.array(picture.convert("RGB")))
        prompt = processor.prompt_ids("blood vessel", len(tiles))
        assert prompt.tolist() == cases[name]["input_ids"]
    assert processor.decode(processor.answer_ids()) == "Sure, [SEG].<|im_end|>"
    ids = (processor.seg_token_id, processor.image_token_id, processor.eos_token_id)
    assert (*ids, processor.pad_token_id) == (595, 588, 566, 564)
    assert (processor.base_vocab_size, processor.vocab_size) == (595, 600)
    assert processor.added_token_ids == [595, 596, 597, 598, 599]


def test_vocabulary_sizes_are_the_same_for_found_and_for_new_tokens(shared_dir):
    path = str(shared_dir / "reference" / "F8_bases" / "internvl3_original")
    processor = Sa2VAProcessor({"type": "pretrained", "path": path})
    assert (processor.base_vocab_size, processor.vocab_size) == (595, 600)
    assert TINY.vocab_size == TINY.base_vocab_size + 5
    assert min(TINY.added_token_ids) == TINY.base_vocab_size


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.lists(st.sampled_from("abc"), max_size=3))
def test_placeholders_fit_the_tiles(height, width, more):
    image = frame(height, width)
    tiles = TINY.tiles(image)
    count = len(tiles)
    assert tiles.shape == (count, 3, 28, 28) and tiles.dtype == torch.float32
    assert 1 <= count <= TINY.max_tiles + 1
    turns = [(TINY.question_for(phrase), TINY.answer) for phrase in ["vessel", *more]]
    ids, labels = TINY.conversation(turns, count)
    assert int((ids == TINY.image_token_id).sum()) == count * TINY.tokens_per_tile
    assert int((labels == TINY.seg_token_id).sum()) == len(turns)
    assert int((ids == TINY.seg_token_id).sum()) == len(turns)
    assert TINY.grounding_pixels(image).shape == (3, 64, 64)
    forced = torch.cat([TINY.prompt_ids("vessel", count), TINY.answer_ids()])
    assert torch.equal(ids[: len(forced)], forced)


def test_tile_limits_and_sam2_size_are_independent():
    image = frame(300, 600)
    one = Sa2VAProcessor(BYTE_LEVEL, max_tiles=1, image_size=512)
    many = Sa2VAProcessor(BYTE_LEVEL, max_tiles=12, image_size=512)
    assert len(one.tiles(image)) == 1 < len(many.tiles(image))
    assert torch.equal(one.grounding_pixels(image), many.grounding_pixels(image))
    large = Sa2VAProcessor(BYTE_LEVEL, max_tiles=12, image_size=1024)
    assert torch.equal(many.tiles(image), large.tiles(image))
    assert large.grounding_pixels(image).shape == (3, 1024, 1024)


def test_reference_numerics_round_at_inference_only():
    image = frame(50, 50)
    reference = Sa2VAProcessor(BYTE_LEVEL, image_size=64, reference_numerics=True)
    exact = Sa2VAProcessor(BYTE_LEVEL, image_size=64)
    assert not exact.reference_numerics
    plain = exact.grounding_pixels(image)
    assert torch.equal(exact.grounding_pixels(image, training=True), plain)
    assert torch.equal(reference.grounding_pixels(image, training=True), plain)
    assert 1e-4 < (reference.grounding_pixels(image) - plain).abs().max() < 1e-2
    assert torch.equal(reference.tiles(image), exact.tiles(image))


def test_data_sets_say_which_images_are_for_training(tmp_path):
    for name, pixels in (("images", frame(40, 40)), ("masks", np.ones((40, 40), np.uint8))):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "a.png")
    processor = Sa2VAProcessor(BYTE_LEVEL, image_size=64, reference_numerics=True)
    for test_mode in (False, True):
        dataset = FolderVesselDataset(
            "images",
            "masks",
            data_root=tmp_path,
            processor=processor,
            phrase="vein",
            test_mode=test_mode,
        )
        item = dataset[0]
        expected = processor.grounding_pixels(dataset.image(0), training=not test_mode)
        read = processor.normalised(item, training=not test_mode)["grounding_pixels"]
        assert torch.equal(read, expected)
        assert item["grounding_pixels"].dtype == (torch.float32 if test_mode else torch.uint8)


def test_pickle_gives_an_equal_processor():
    copy = pickle.loads(pickle.dumps(TINY))
    image = frame(60, 90)
    assert torch.equal(copy.tiles(image), TINY.tiles(image))
    assert torch.equal(copy.prompt_ids("left [artery]", 2), TINY.prompt_ids("left [artery]", 2))
    assert copy.tokenizer.get_vocab() == TINY.tokenizer.get_vocab()
    plain = {k: v for k, v in vars(TINY).items() if k != "tokenizer"}
    assert {k: v for k, v in vars(copy).items() if k != "tokenizer"} == plain


def test_phrase_is_plain_text_in_the_question():
    assert TINY.question_for(" {a} {phrase} ") == "Please segment the {a} {phrase} in this image."
    processor = Sa2VAProcessor(BYTE_LEVEL, question="{{x}} {phrase}?", answer="It is [SEG]!")
    assert processor.question_for("vein") == "{{x}} vein?"
    assert processor.decode(processor.answer_ids()) == "It is [SEG]!<|im_end|>"


@pytest.mark.parametrize("phrase", ["", "  ", None, "<IMG_CONTEXT>", "[SEG]", "a<|im_end|>"])
def test_phrases_that_cannot_be_asked_are_refused(phrase):
    with pytest.raises(DataError, match="phrase"):
        TINY.prompt_ids(phrase, 1)


def test_an_image_without_tiles_is_refused():
    with pytest.raises(DataError, match="0 tiles"):
        TINY.prompt_ids("vessel", 0)
    with pytest.raises(DataError, match="0 tiles"):
        TINY.conversation([("q", "a")], 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"answer": "Sure."},
        {"answer": "[SEG] and [SEG]"},
        {"answer": "[SEG]<|im_end|>"},
        {"answer": None},
        {"question": "Segment the vessel."},
        {"question": "{phrase} or {phrase}"},
        {"question": "[SEG] {phrase}"},
        {"question": "<img>{phrase}"},
        {"added_tokens": ["<p>"]},
        {"added_tokens": "[SEG]"},
        {"added_tokens": ["[SEG]", ""]},
        {"added_tokens": ["[SEG]", "[SEG]"]},
        {"tile_size": 0},
        {"tokens_per_tile": 2.5},
        {"min_tiles": 3, "max_tiles": 2},
        {"min_tiles": 0},
        {"use_thumbnail": "no"},
        {"image_size": 1000},
        {"image_size": "1024"},
        {"reference_numerics": "yes"},
        {"tokenizer": None},
        {"tokenizer": "some/model"},
    ],
    ids=str,
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ConfigError) as caught:
        Sa2VAProcessor(**{"tokenizer": BYTE_LEVEL, **wrong})
    assert next(iter(wrong)) in caught.value.found
    assert caught.value.expected and caught.value.fix


def test_every_setting_is_documented():
    documented = inspect.getdoc(Sa2VAProcessor).splitlines()
    for name in inspect.signature(Sa2VAProcessor).parameters:
        assert any(line.startswith(f"    {name}: ") for line in documented), name


@pytest.mark.parametrize("reference", [False, True])
def test_pixels_that_are_normalised_later_are_the_same(reference):
    sizes = dict(tile_size=28, tokens_per_tile=4, max_tiles=6, image_size=64)
    processor = Sa2VAProcessor(BYTE_LEVEL, reference_numerics=reference, **sizes)
    image = frame(70, 50)
    raw = processor.prediction_item(image, ["blood vessel"], normalised=False)
    assert raw["pixel_values"].dtype == raw["grounding_pixels"].dtype == torch.uint8
    later, now = processor.normalised(raw), processor.prediction_item(image, ["blood vessel"])
    assert torch.equal(later["pixel_values"], processor.tiles(image))
    assert torch.equal(later["grounding_pixels"], processor.grounding_pixels(image))
    for key in ("pixel_values", "grounding_pixels"):
        assert torch.equal(later[key], now[key]) and now[key].is_contiguous()
        assert torch.equal(processor.normalised(now)[key], now[key])
