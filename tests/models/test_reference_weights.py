"""The reference's weights through the product's own loaders, against its golden numbers.

Files of shared/reference: F1 a released model, F4 its numbers, F7 a training checkpoint over F1
with its numbers, F8 the base weights as they are published. All of it is tiny and random.

Largest deviations from the reference over the three images, measured by these tests on a CPU in
float32: F7 as LoRA: mask logits 1.1e-5, IoU 7e-7, [SEG] embedding 2e-6; merged: the same.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from projects.sa2va.checkpoints.convert import convert
from projects.sa2va.models import Sa2VAModel
from tests.checkpoints.over_reference import (
    checkpoint_path,
    copy_f1,
    over,
    trained_over,
    whole,
    write_config,
)

from .reference_model import IMAGES, model_config
from .reference_trace import Trace
from .test_reference_forward import check_forward, packed, picture

TOLERANCE = {"multimask_logits": 1e-4, "final_logits": 1e-4, "logits_tail": 1e-4}


@pytest.fixture(scope="module")
def reference(shared_dir: Path) -> Path:
    return shared_dir / "reference"


@pytest.fixture(scope="module")
def as_lora(reference: Path) -> Sa2VAModel:
    """F7 over F1, as training and tools/test.py load it."""
    return trained_over(reference)


@pytest.fixture(scope="module")
def traces(as_lora: Sa2VAModel, reference: Path) -> dict[str, Trace]:
    return {name: Trace(as_lora, picture(reference, name)) for name in IMAGES}


@pytest.fixture(scope="module")
def config(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    return write_config(reference, copy_f1(reference, folder / "F1"), folder / "config.py")


@pytest.fixture(scope="module")
def golden(reference: Path) -> dict[str, Tensor]:
    return load_file(reference / "F7_checkpoint" / "expected.safetensors")


def check_prediction(
    reference: Path, expected: dict[str, Tensor], model: Sa2VAModel, name: str, trace: Trace
) -> None:
    """One forced prediction against the numbers that F4 and F7 both have."""
    meta = json.loads((reference / "F4_forward" / f"{name}.json").read_text())
    hidden = trace["last_hidden"][0, meta["tail_start"] :]
    own = {
        "seg_embed": trace["seg_embed"],
        "multimask_logits": trace["multimask_logits"][0],
        "iou_scores": trace["iou_scores"][0],
        "final_logits": trace.final[0][None],
        "logits_tail": model.mllm.logits(hidden).detach(),
    }
    for key, tensor in own.items():
        atol = TOLERANCE.get(key, 1e-5)
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=atol, msg=key)
    undecided = (expected["final_logits"].abs() < 1e-4).numpy().reshape(-1)
    bits = (packed(trace.prediction.probabilities) ^ expected["final_mask_packed"]).numpy()
    assert not np.unpackbits(bits)[: undecided.size][~undecided].any()
    assert undecided.mean() < 1e-3


def check_trained(
    reference: Path, golden: dict[str, Tensor], model: Sa2VAModel, name: str, trace: Trace
) -> None:
    """One forced prediction with F7's weights against F7's numbers."""
    expected = {k.split(".")[1]: v for k, v in golden.items() if k.startswith(f"{name}.")}
    check_prediction(reference, expected, model, name, trace)
    sizes = json.loads((reference / "F7_checkpoint" / "expected.json").read_text())[name]
    count = int((trace.prediction.probabilities > 0.5).sum())
    assert count == pytest.approx(sizes["final_mask_sum"], abs=20)
    answer = len(model.processor.answer_ids())
    assert len(trace["input_ids"][0]) == sizes["prompt_len"] + answer


# ----------------------------------------------------------------------- base weights as published


@pytest.fixture(scope="module")
def released(reference: Path) -> Sa2VAModel:
    return over(reference, mllm={"lora": None, "train_token_rows": False})


def test_released_model(reference: Path, released: Sa2VAModel) -> None:
    assert not released.processor.new_tokens
    for name in IMAGES:
        expected = load_file(reference / "F4_forward" / f"{name}.safetensors")
        trace = Trace(released, picture(reference, name))
        check_prediction(reference, expected, released, name, trace)


def test_base_weights_as_published(reference: Path, released: Sa2VAModel) -> None:
    """InternVL by OpenGVLab and SAM2 by Meta; what Sa2VA adds comes from F1 by hand."""
    folder = reference / "F8_bases"
    config = model_config(
        reference,
        processor={"tokenizer": {"type": "pretrained", "path": str(folder / "internvl3_original")}},
        mllm={"config": None, "pretrained": str(folder / "internvl3_original")},
        grounding={"pretrained": str(folder / "sam2_original" / "tiny.pt")},
    )
    model = Sa2VAModel(**config).eval()
    added = load_file(reference / "F1_model" / "model.safetensors")
    ids = json.loads((reference / "F1_tokenizer" / "added_tokens.json").read_text())
    tokens = model.added_tokens()
    assert {name: ids[name] for name in tokens} == tokens
    rows = sorted(tokens.values())
    core = model.mllm._core
    with torch.no_grad():
        for table, key in (
            (core.get_input_embeddings(), "language_model.model.embed_tokens.weight"),
            (core.get_output_embeddings(), "language_model.lm_head.weight"),
        ):
            assert not torch.equal(table.weight[rows], added[key][rows].float())
            table.weight[rows] = added[key][rows].float()
        for name, value in model.seg_projector.state_dict().items():
            value.copy_(added[f"text_hidden_fcs.{name}"])
    own, expected = model.state_dict(), released.state_dict()
    assert own.keys() == expected.keys()
    assert [key for key, value in own.items() if not value.equal(expected[key])] == []
    # Every weight is that of the released model, so one image is enough, with every tensor of it.
    check_forward(reference, model, "img_a", Trace(model, picture(reference, "img_a")))


# ---------------------------------------------------------------- the reference's own checkpoint


@pytest.mark.parametrize("name", IMAGES)
def test_checkpoint_as_lora(reference, golden, as_lora, traces, name) -> None:
    check_trained(reference, golden, as_lora, name, traces[name])


def test_checkpoint_merged_and_imported_again(reference, golden, config, tmp_path) -> None:
    out = tmp_path / "merged"
    path = checkpoint_path(reference)
    convert(path, out, "sa2va", config=str(config), dtype=torch.float32)
    model = whole(reference, out)
    assert not any(".lora_" in name for name, _ in model.named_parameters())
    for name in IMAGES:
        check_trained(reference, golden, model, name, Trace(model, picture(reference, name)))


def test_checkpoint_as_adapter(reference, golden, config, as_lora, tmp_path) -> None:
    out = tmp_path / "adapter"
    convert(checkpoint_path(reference), out, "adapter", config=str(config))
    model = trained_over(reference, out)
    # Every weight is the same, so every image is; one is predicted all the same.
    expected = as_lora.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    trace = Trace(model, picture(reference, "img_a"))
    check_trained(reference, golden, model, "img_a", trace)


# ------------------------------------------------------------------------------------- bfloat16


def test_bfloat16_is_near_float32(reference, traces) -> None:
    """Frozen weights and autocast in bfloat16, as the recipes have it, against float32 (F7).

    Measured on a CPU (largest and mean difference of the probabilities, part of the pixels on the
    other side of 0.5, largest difference of the logits, whose standard deviation is 1.2):

        img_a  0.0151  0.0022  0.29 %  0.078
        img_b  0.0132  0.0017  0.27 %  0.056
        img_c  0.0157  0.0023  0.34 %  0.066

    One image is enough to see an accident of dtypes; the others take the CPU another 20 s.
    """
    half = trained_over(
        reference,
        autocast="bfloat16",
        mllm={"dtype": "bfloat16"},
        grounding={"dtype": "bfloat16"},
    )
    wide = {name for name, p in half.named_parameters() if p.dtype is not torch.bfloat16}
    trained = {name for name, p in half.named_parameters() if p.requires_grad}
    heads = {name for name in wide if "prediction_head" in name or "score_head" in name}
    assert wide == trained | heads
    full, own = traces["img_a"], Trace(half, picture(reference, "img_a"))
    assert own["vit_embeds"].dtype is torch.bfloat16
    difference = (own.prediction.probabilities - full.prediction.probabilities).abs()
    other = (own.prediction.probabilities > 0.5) != (full.prediction.probabilities > 0.5)
    assert int(own["iou_scores"].argmax()) == int(full["iou_scores"].argmax())
    assert 0 < float(difference.max()) < 0.03
    assert float(difference.mean()) < 0.005
    assert float(other.float().mean()) < 0.007
    assert float((own.final[0] - full.final[0]).abs().max()) < 0.15
