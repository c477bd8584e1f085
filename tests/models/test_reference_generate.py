"""Greedy answers and their masks against the reference (F5_generate, tiny weights)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from projects.sa2va.datasets.image_io import read_image
from projects.sa2va.models import Sa2VAModel
from projects.sa2va.processing import prompts

from .reference_model import build
from .reference_trace import Trace

ONE_SEG = [f"one_seg_{name}" for name in ("img_a", "img_b", "img_c")]
PLAIN = [f"plain_{name}" for name in ("img_a", "img_b", "img_c")]
CUT = "one_seg_img_a_max_new_tokens_4"


@pytest.fixture(scope="module")
def reference(shared_dir: Path) -> Path:
    return shared_dir / "reference"


@pytest.fixture(scope="module")
def cases(reference: Path) -> dict[str, dict]:
    return json.loads((reference / "F5_generate" / "outputs.json").read_text())


@pytest.fixture(scope="module")
def model(reference: Path) -> Sa2VAModel:
    model = build(reference, answer_mode="generate")
    encode, known = model.grounding.encode, {}

    def encode_once(images: Tensor) -> Any:
        """Most of the time goes into SAM2's encoder, and the cases share three images."""
        key = images.numpy().tobytes()
        if key not in known:
            known[key] = encode(images)
        return known[key]

    model.grounding.encode = encode_once
    return model


@pytest.fixture
def prepared(model: Sa2VAModel, reference: Path, cases: dict[str, dict]) -> Any:
    """Gives the model and the golden entry of a case, head and limit of tokens as it asks."""
    head = model.mllm._core.get_output_embeddings().weight
    before = head.detach().clone()

    def prepare(case: str) -> tuple[Sa2VAModel, dict]:
        meta = cases[case]
        base, _, override = meta["weights"].partition(" + ")
        assert base == "F1"
        if override:
            (value,) = load_file(reference / "F5_generate" / override).values()
            with torch.no_grad():
                head.copy_(value.float())
        model.max_new_tokens = meta["max_new_tokens"]
        return model, meta

    yield prepare
    with torch.no_grad():
        head.copy_(before)


def predicted(prepared: Any, reference: Path, case: str) -> tuple[Trace, dict]:
    """Runs a case; the generated ids are held to the golden ones here."""
    model, meta = prepared(case)
    trace = Trace(model, read_image(reference / "F2_preprocess" / f"{meta['image']}.png"))
    assert trace.answers == [meta["generated_ids"]]
    assert trace.prediction.answers[0].strip() == meta["prediction"]
    return trace, meta


def check_masks(reference: Path, stored: str, final: list[Tensor]) -> None:
    """Masks of each [SEG] from logits [H, W], but for pixels that are undecided (below 1e-4)."""
    golden = load_file(reference / "F5_generate" / "outputs.safetensors")[stored].numpy()
    logits = torch.stack(final).numpy()
    expected = np.unpackbits(golden)[: logits.size].reshape(logits.shape).astype(bool)
    assert not ((logits > 0) != expected)[np.abs(logits) >= 1e-4].any()


def test_every_case_and_every_stored_mask_is_tested(
    reference: Path, cases: dict[str, dict]
) -> None:
    other = ["plain_text_only", CUT, "one_seg_img_a_max_new_tokens_5", "two_seg_img_b"]
    assert sorted(cases) == sorted([*PLAIN, *ONE_SEG, *other])
    stored = load_file(reference / "F5_generate" / "outputs.safetensors")
    assert set(stored) == {name for name, meta in cases.items() if meta["num_masks"]}


@pytest.mark.parametrize("case", PLAIN)
def test_answer_without_seg_agrees(prepared: Any, reference: Path, case: str) -> None:
    trace, meta = predicted(prepared, reference, case)
    assert meta["num_masks"] == 0
    assert trace.prediction.seg_emitted == [False]
    assert float(trace.prediction.probabilities.abs().sum()) == 0.0


def test_text_only_answer_agrees(prepared: Any) -> None:
    """The joint model always has an image; without one its language model is asked by itself."""
    model, meta = prepared("plain_text_only")
    question = meta["text"].removeprefix("<image>")
    ids = torch.tensor([prompts.prompt_ids(model.processor.tokenizer, question)])
    no_tiles = torch.zeros(0, model.processor.tokens_per_tile, model.mllm.hidden_size)
    embeddings = model.mllm.embed(ids, no_tiles)
    new = model.mllm.generate(embeddings, torch.ones_like(ids), meta["max_new_tokens"])
    assert new.tolist() == [meta["generated_ids"]]


@pytest.mark.parametrize("case", [*ONE_SEG, "one_seg_img_a_max_new_tokens_5"])
def test_answer_with_one_seg_agrees(prepared: Any, reference: Path, case: str) -> None:
    trace, meta = predicted(prepared, reference, case)
    assert trace.prediction.seg_emitted == [True]
    assert meta["num_masks"] == len(trace.final) == 1
    check_masks(reference, case, trace.final)
    assert torch.equal(trace.prediction.probabilities, trace.final[0][None].sigmoid())


def test_generated_template_gives_the_map_of_the_forced_answer(
    prepared: Any, reference: Path
) -> None:
    trace, meta = predicted(prepared, reference, "one_seg_img_a")
    model, _ = prepared("one_seg_img_a")
    model.answer_mode = "forced"
    try:
        forced = Trace(model, read_image(reference / "F2_preprocess" / f"{meta['image']}.png"))
    finally:
        model.answer_mode = "generate"
    assert forced.answers == []
    assert torch.equal(trace.prediction.probabilities, forced.prediction.probabilities)


def test_seg_as_the_last_token_gives_its_mask_here(prepared: Any, reference: Path) -> None:
    """A documented difference: the reference drops the last token's state, and gives no mask."""
    trace, meta = predicted(prepared, reference, CUT)
    assert meta["num_masks"] == 0 and meta["generated_ids"][-1] == 595
    assert trace.prediction.seg_emitted == [True]
    check_masks(reference, "one_seg_img_a", trace.final)


def test_answer_with_two_seg_agrees(prepared: Any, reference: Path) -> None:
    """Both masks agree; here the prediction is their union, one map for each phrase."""
    trace, meta = predicted(prepared, reference, "two_seg_img_b")
    assert meta["num_masks"] == len(trace.final) == 2
    check_masks(reference, "two_seg_img_b", trace.final)
    union = torch.stack(trace.final).sigmoid().amax(dim=0)
    assert torch.equal(trace.prediction.probabilities, union[None])
