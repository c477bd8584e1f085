"""The joint model against golden numbers of the reference implementation (tiny weights)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from projects.sa2va.datasets.image_io import read_image
from projects.sa2va.models import Sa2VAModel

from .reference_model import load_reference, model_config

PHRASE = "blood vessel"
IMAGES = ("img_a", "img_b", "img_c")


@pytest.fixture(scope="module")
def reference(shared_dir: Path) -> Path:
    return shared_dir / "reference"


@pytest.fixture(scope="module")
def model(reference: Path) -> Sa2VAModel:
    model = Sa2VAModel(**model_config(reference)).eval()
    left = load_reference(reference, model)
    assert left == [], "every weight of ours has one in the reference"
    return model


def predict_inputs(model: Sa2VAModel, images: list[np.ndarray], phrases: list[list[str]]) -> dict:
    """What the collate function makes of images and phrases."""
    tiles = [model.processor.tiles(image) for image in images]
    return {
        "pixel_values": torch.cat(tiles),
        "tiles_per_image": [len(t) for t in tiles],
        "grounding_pixels": torch.stack([model.processor.grounding_pixels(i) for i in images]),
        "prompts": [
            [model.processor.prompt_ids(phrase, len(t)) for phrase in group]
            for group, t in zip(phrases, tiles, strict=True)
        ],
        "sizes": [image.shape[:2] for image in images],
    }


@pytest.mark.parametrize("name", IMAGES)
def test_forced_forward_agrees(model: Sa2VAModel, reference: Path, name: str) -> None:
    image = read_image(reference / "F2_preprocess" / f"{name}.png")
    golden = load_file(reference / "F4_forward" / f"{name}.safetensors")
    meta = json.loads((reference / "F4_forward" / f"{name}.json").read_text())
    inputs = predict_inputs(model, [image], [[PHRASE]])
    ids = torch.cat([inputs["prompts"][0][0], model.processor.answer_ids()])[None]
    assert torch.equal(ids[0], golden["input_ids"])
    with torch.no_grad():
        visual = model.mllm.visual_tokens(inputs["pixel_values"])
        hidden = model.mllm.hidden_states(model.mllm.embed(ids, visual), torch.ones_like(ids))
        seg = hidden[ids == model.processor.seg_token_id]
        embedding = model.seg_projector(seg)
        features = model.grounding.encode(inputs["grounding_pixels"])
        logits, iou = model.grounding.decode(features, embedding)
        prediction = model(inputs=inputs, mode="predict")[0]
    torch.testing.assert_close(seg, golden["seg_hidden"], atol=2e-5, rtol=0)
    torch.testing.assert_close(embedding, golden["seg_embed"], atol=2e-5, rtol=0)
    torch.testing.assert_close(iou[0], golden["iou_scores"], atol=1e-5, rtol=0)
    best = meta["best_mask_index"]
    assert int(iou[0].argmax()) == best
    torch.testing.assert_close(logits[0], golden["multimask_logits"][best], atol=1e-4, rtol=0)
    final = golden["final_logits"]
    torch.testing.assert_close(prediction.probabilities, final.sigmoid(), atol=1e-4, rtol=0)
    assert prediction.seg_emitted == [True]
    packed = np.packbits((prediction.probabilities > 0.5).numpy().reshape(-1))
    different = np.unpackbits(packed ^ golden["final_mask_packed"].numpy().reshape(-1)).sum()
    assert different <= int((final.abs() < 1e-4).sum())


def test_batch_of_mixed_sizes_agrees_with_single_images(model: Sa2VAModel, reference: Path) -> None:
    images = [read_image(reference / "F2_preprocess" / f"{name}.png") for name in IMAGES]
    together = model(
        inputs=predict_inputs(model, images, [[PHRASE], ["artery", PHRASE], [PHRASE]]),
        mode="predict",
    )
    assert [tuple(p.probabilities.shape) for p in together] == [
        (1, 299, 301),
        (2, 171, 333),
        (1, 250, 163),
    ]
    for image, prediction in zip(images, together, strict=True):
        alone = model(inputs=predict_inputs(model, [image], [[PHRASE]]), mode="predict")[0]
        torch.testing.assert_close(
            prediction.probabilities[-1], alone.probabilities[0], atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("case", ["override_one_seg", "plain"])
def test_generate_agrees(reference: Path, case: str) -> None:
    model = Sa2VAModel(**model_config(reference, answer_mode="generate", max_new_tokens=16)).eval()
    load_reference(reference, model)
    if case == "override_one_seg":
        head = load_file(reference / "F5_generate" / "override_one_seg.safetensors")
        with torch.no_grad():
            model.mllm._core.lm_head.weight.copy_(next(iter(head.values())).float())
    image = read_image(reference / "F2_preprocess" / "img_a.png")
    inputs = predict_inputs(model, [image], [[PHRASE]])
    prediction = model(inputs=inputs, mode="predict")[0]
    if case == "plain":
        assert prediction.seg_emitted == [False]
        assert float(prediction.probabilities.abs().sum()) == 0.0
        return
    assert prediction.seg_emitted == [True]
    assert prediction.answers[0].startswith("Sure, [SEG].")
    # The template's answer was generated, so the forced mode must give the same map.
    model.answer_mode = "forced"
    forced = model(inputs=inputs, mode="predict")[0]
    assert torch.equal(prediction.probabilities, forced.probabilities)


def _training_batch(reference: Path, case: str) -> tuple[dict, list[torch.Tensor], dict]:
    golden = load_file(reference / "F6_train" / f"{case}.safetensors")
    meta = json.loads((reference / "F6_train" / f"{case}.json").read_text())
    masks = []
    for index, shape in enumerate(meta.get("masks_shape", [])):
        packed = golden[f"gt_masks_packed_{index}"].numpy()
        flat = np.unpackbits(packed)[: int(np.prod(shape))]
        masks.append(torch.from_numpy(flat.reshape(shape)))
    return golden, masks, meta


@pytest.mark.parametrize(
    ("case", "mode"), [("one_obj", "full"), ("one_obj", "sample_points"), ("no_seg", "full")]
)
def test_training_losses_agree(reference: Path, case: str, mode: str) -> None:
    golden, masks, meta = _training_batch(reference, case)
    settings = model_config(
        reference,
        processor={"grounding_norm": "exact"},
        mllm={"lora": {"r": 8, "lora_alpha": 16}},
        mask_loss={
            "type": "MaskLoss",
            "supervision": "nearest",
            "num_points": 12544 if mode == "sample_points" else 0,
        },
    )
    model = Sa2VAModel(**settings)
    load_reference(reference, model)
    _load_lora(reference, model)
    images = [
        np.asarray(Image.open(reference / "F2_preprocess" / f"{name}.png").convert("RGB"))
        for name in meta["images"]
    ]
    inputs = {
        "input_ids": golden["input_ids"],
        "labels": golden["labels"],
        "attention_mask": golden["attention_mask"].long(),
        "pixel_values": torch.cat([model.processor.tiles(image) for image in images]),
        "grounding_pixels": torch.stack(
            [model.processor.grounding_pixels(image) for image in images]
        ),
    }
    if case == "no_seg":
        masks = [torch.zeros(0, *image.shape[:2], dtype=torch.uint8) for image in images]
    if mode == "sample_points" and case != "no_seg":
        # The reference repeats each object five times and draws points for every copy; the mean
        # over the copies of one object is what five of our objects with those points give.
        points = golden["points_coords"]
        original = model.mask_loss.forward

        def with_points(logits: torch.Tensor, labels: list[torch.Tensor]) -> dict:
            copies = [label.repeat(5, 1, 1) for label in labels]
            return original(
                logits.repeat_interleave(5, dim=0), copies, points=list(points.split(5))
            )

        model.mask_loss.forward = with_points
    losses = model(inputs=inputs, masks=masks, meta=[{}, {}], mode="loss")
    expected = meta["loss"][mode]
    assert float(losses["loss_language"]) == pytest.approx(expected["llm_loss"], rel=5e-6)
    if case == "no_seg":
        assert float(losses["loss_mask"]) == 0.0
        return
    assert float(losses["loss_mask"]) == pytest.approx(expected["loss_mask"], rel=5e-6)
    # Of sampled points the reference divides Dice by (number of objects + 1e-4).
    tolerance = 5e-6 if mode == "full" else 1.5e-5
    assert float(losses["loss_dice"]) == pytest.approx(expected["loss_dice"], rel=tolerance)
    sum(losses.values()).backward()
    norms = {
        "text_hidden_fcs": model.seg_projector,
        "mlp1": model.mllm._core.model.multi_modal_projector,
        "sam_mask_decoder": model.grounding.model.mask_decoder,
    }
    for group, module in norms.items():
        total = sum(float(p.grad.pow(2).sum()) for p in module.parameters() if p.grad is not None)
        assert total**0.5 == pytest.approx(expected["grad_norm"][group], rel=1e-4), group


def _load_lora(reference: Path, model: Sa2VAModel) -> None:
    saved = load_file(reference / "F6_train" / "lora_and_saved_modules.safetensors")
    own = dict(model.mllm.model.named_parameters())
    loaded = 0
    with torch.no_grad():
        for key, value in saved.items():
            if "lora_" in key:
                short = key.split("base_model.model.model.")[1]
                name = f"base_model.model.model.language_model.{short}"
                own[name].copy_(value.float())
                loaded += 1
            elif "embed_tokens" in key:
                model.mllm._core.get_input_embeddings().weight.copy_(value.float())
            elif "lm_head" in key:
                model.mllm._core.lm_head.weight.copy_(value.float())
    assert loaded == sum(".lora_" in name for name in own)
