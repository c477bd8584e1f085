"""Trained weights go into the model they were trained in, and into no other."""

from __future__ import annotations

import hashlib
import re

import pytest
import torch

from projects.sa2va.checkpoints import (
    build_model_from_checkpoint,
    load_trained,
    read_checkpoint,
    write_atomically,
)
from projects.sa2va.errors import CheckpointError

from .conftest import build


def test_loads_everything_and_reports_it(tiny_config, trained, payload, tmp_path):
    path = tmp_path / "iter_3.pth"
    write_atomically(payload, path)
    model = build(tiny_config)
    name = next(iter(payload["state_dict"]))
    assert not torch.equal(model.get_parameter(name), trained.get_parameter(name))
    report = load_trained(model, read_checkpoint(path), path)
    loaded = model.trained_state_dict()
    assert loaded.keys() == payload["state_dict"].keys()
    assert all(torch.equal(loaded[key], payload["state_dict"][key]) for key in loaded)

    rows = {row.part: row for row in report.rows if row.source == str(path)}
    assert sum(row.loaded for row in rows.values()) == len(payload["state_dict"])
    assert {"LoRA", "token rows", "[SEG] projector", "SAM2 mask decoder"} <= set(rows)
    assert {row.part for row in report.rows} > set(rows)  # the base's parts are named too
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    text = report.text()
    assert str(path) in text
    assert "iteration 3" in text
    assert report.sha256[:16] in text
    assert "nothing missing, nothing left over" in text
    assert re.search(rf"LoRA +{rows['LoRA'].tensors} +\d+ +float32 +{rows['LoRA'].checksum}", text)
    assert report.as_dict()["parts"][-1]["checksum"] == report.rows[-1].checksum
    assert report.checkpoint()["iteration"] == 3


def _refused(model, payload) -> CheckpointError:
    with pytest.raises(CheckpointError, match=r"iter_3\.pth") as caught:
        load_trained(model, payload, "iter_3.pth")
    return caught.value


def test_other_lora_rank(tiny_config, payload):
    error = _refused(build(tiny_config, model__mllm__lora__r=4), payload)
    assert "other shape (LoRA)" in error.found
    assert "(2, 32) in the file, (4, 32) in the model" in error.found
    assert "model.mllm.lora" in error.fix


def test_frozen_decoder(tiny_config, payload):
    error = _refused(build(tiny_config, model__grounding__train_mask_decoder=False), payload)
    assert "unexpected (SAM2 mask decoder)" in error.found
    assert "missing" not in error.found


def test_more_trained_than_was_stored(tiny_config, payload):
    kept = {k: v for k, v in payload["state_dict"].items() if not k.startswith("seg_projector")}
    error = _refused(build(tiny_config), {**payload, "state_dict": kept})
    assert "4 missing ([SEG] projector)" in error.found


def test_refused_weights_change_nothing(tiny_config, payload):
    model = build(tiny_config)
    before = model.trained_state_dict()
    payload["state_dict"]["left.over"] = torch.zeros(1)
    _refused(model, payload)
    after = model.trained_state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_other_base_weights_are_named_by_part(tiny_config, payload):
    error = _refused(build(tiny_config, model__mllm__seed=5), payload)
    assert "trained over other frozen weights" in error.found
    assert "MLLM language model" in error.found
    assert "SAM2" not in error.found
    assert payload["meta"]["base_fingerprint"]["MLLM language model"] in error.expected
    assert "model.mllm.pretrained" in error.fix


@pytest.mark.parametrize(
    "names", [("<p>", "[SEG]", "</p>", "<vp>", "</vp>"), ("[SEG]", "<p>", "</p>", "<vp>", "<x>")]
)
def test_other_added_tokens_of_the_same_number(tiny_config, payload, names):
    # Every shape fits, and so do all the ids: only the names tell.
    error = _refused(build(tiny_config, model__processor__added_tokens=list(names)), payload)
    assert "added tokens" in error.found
    assert "processor.added_tokens" in error.fix


def test_another_number_of_added_tokens(tiny_config, payload):
    error = _refused(build(tiny_config, model__processor__added_tokens=["[SEG]"]), payload)
    assert "token rows" in error.found


def test_added_tokens_names_and_ids(trained):
    assert trained.added_tokens()["[SEG]"] == trained.processor.seg_token_id
    assert list(trained.added_tokens().values()) == trained.processor.added_token_ids


def test_model_from_a_checkpoint_alone_predicts_bit_equal(trained, payload, tmp_path):
    path = tmp_path / "iter_3.pth"
    write_atomically(payload, path)
    model, report = build_model_from_checkpoint(path)
    assert report.iteration == 3
    assert not model.training
    processor = trained.processor
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "pixel_values": torch.randn(1, 3, 56, 56, generator=generator),
        "tiles_per_image": [1],
        "grounding_pixels": torch.randn(1, 3, 64, 64, generator=generator),
        "prompts": [[processor.prompt_ids("blood vessel", 1), processor.prompt_ids("wire", 1)]],
        "sizes": [(50, 70)],
    }
    mine, theirs = (m(inputs, mode="predict")[0].probabilities for m in (trained, model))
    assert mine.shape == (2, 50, 70)
    assert mine.std() > 0
    assert torch.equal(mine, theirs)
