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


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"lora_alpha": 8}, "lora_alpha=4, the config has lora_alpha=8"),
        ({"use_rslora": True}, "use_rslora=False, the config has use_rslora=True"),
        ({"alpha_pattern": {"up_proj": 1}}, "alpha_pattern={}, the config has alpha_pattern={'up"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_lora_scale(tiny_config, payload, change, found):
    # No tensor shows it: every shape fits.
    model = build(tiny_config, **{f"model__mllm__lora__{k}": v for k, v in change.items()})
    error = _refused(model, payload)
    assert found in error.found and "same scale" in error.expected
    assert error.fix.startswith(f"set model.mllm.lora.{next(iter(change))}=")
    assert "init_from" not in error.fix


def test_lora_scale_of_a_converted_checkpoint(tiny_config, payload):
    scale = {"lora_alpha": 4, "use_rslora": True, "alpha_pattern": {}}
    payload["meta"].update(cfg="llm_lora = Lora(r=2)", converted={}, lora_scale=scale)
    assert "use_rslora=True, the config has" in _refused(build(tiny_config), payload).found


@pytest.mark.parametrize("text", [None, "model = dict(mllm=dict())"])
def test_lora_scale_that_no_config_says(tiny_config, payload, tmp_path, text):
    payload["meta"]["cfg"] = text
    file = tmp_path / "iter_3.pth"
    write_atomically(payload, file)
    text = load_trained(build(tiny_config), payload, file).text()
    assert "does not say LoRA's alpha: used 4" in text and "a scale of 2" in text


def test_modules_that_a_stored_config_names_are_not_needed_for_its_scale(
    tiny_config, payload, tmp_path
):
    payload["meta"]["cfg"] += "custom_imports = dict(imports=['not_installed_here'])\n"
    file = tmp_path / "iter_3.pth"
    write_atomically(payload, file)
    assert not load_trained(build(tiny_config), payload, file).notes


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


def test_other_words_of_the_same_number_are_other_tokens(tiny_config):
    """The shapes fit, but every row of the tables would mean another text."""
    left, right = (
        build(tiny_config, model__processor__tokenizer__words=words)
        for words in ([" left", " right"], [" right", " left"])
    )
    assert left.processor.vocab_size == right.processor.vocab_size
    assert left.added_tokens() != right.added_tokens()
    assert left.added_tokens()[" left"] != right.added_tokens()[" left"]


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
