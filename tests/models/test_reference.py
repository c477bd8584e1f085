"""The joint model against golden numbers of the reference implementation (tiny weights)."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from projects.sa2va.datasets.image_io import read_image
from projects.sa2va.models import Prediction, Sa2VAModel

from .conftest import PHRASE, predict_inputs
from .reference_model import load_reference, model_config

IMAGES = ("img_a", "img_b", "img_c")


@pytest.fixture(scope="module")
def reference(shared_dir: Path) -> Path:
    return shared_dir / "reference"


def build(reference: Path, attention: str = "sdpa", **changes: object) -> Sa2VAModel:
    model = Sa2VAModel(**model_config(reference, attention, **changes)).eval()
    left = load_reference(reference, model)
    assert left == [], "every weight of ours has one in the reference"
    return model


@pytest.fixture(scope="module")
def model(reference: Path) -> Sa2VAModel:
    return build(reference)


@dataclass
class Steps:
    """One prediction, and what it went through: [SEG] state, prompt, logits, IoU."""

    ids: torch.Tensor
    seg: torch.Tensor
    embedding: torch.Tensor
    logits: torch.Tensor
    iou: torch.Tensor
    prediction: Prediction


def predict_in_steps(model: Sa2VAModel, image: np.ndarray) -> Steps:
    seen: list[tuple[torch.Tensor, ...]] = []
    embed, decode = model.mllm.embed, model.grounding.decode
    hook = model.seg_projector.register_forward_hook(lambda _m, x, out: seen.append((*x, out)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            model.mllm, "embed", lambda ids, visual: seen.append((ids,)) or embed(ids, visual)
        )
        patch.setattr(model.grounding, "decode", lambda f, p: seen.append(decode(f, p)) or seen[-1])
        prediction = model(
            inputs=predict_inputs(model.processor, [image], [[PHRASE]]), mode="predict"
        )
    hook.remove()
    (ids,), (seg, embedding), (logits, iou) = seen
    return Steps(ids, seg, embedding, logits, iou, prediction[0])


@pytest.fixture(scope="module")
def alone(model: Sa2VAModel, reference: Path) -> Callable[[str], Steps]:
    """Each image predicted by itself, once."""
    return functools.cache(
        lambda name: predict_in_steps(
            model, read_image(reference / "F2_preprocess" / f"{name}.png")
        )
    )


@pytest.mark.parametrize("name", IMAGES)
def test_forced_forward_agrees(alone: Callable, reference: Path, name: str) -> None:
    check_forward(reference, name, alone(name))


def test_forced_forward_agrees_with_eager_attention(reference: Path) -> None:
    """The reference's own; sdpa is the default, and an order of magnitude faster on a CPU."""
    image = read_image(reference / "F2_preprocess" / "img_a.png")
    check_forward(reference, "img_a", predict_in_steps(build(reference, "eager"), image))


def check_forward(reference: Path, name: str, steps: Steps) -> None:
    golden = load_file(reference / "F4_forward" / f"{name}.safetensors")
    meta = json.loads((reference / "F4_forward" / f"{name}.json").read_text())
    best, final = meta["best_mask_index"], golden["final_logits"]
    assert torch.equal(steps.ids[0], golden["input_ids"])
    close = functools.partial(torch.testing.assert_close, rtol=0)
    close(steps.seg, golden["seg_hidden"], atol=2e-5)
    close(steps.embedding, golden["seg_embed"], atol=2e-5)
    close(steps.iou[0], golden["iou_scores"], atol=1e-5)
    assert int(steps.iou[0].argmax()) == best
    close(steps.logits[0], golden["multimask_logits"][best], atol=1e-4)
    probabilities = steps.prediction.probabilities
    close(probabilities, final.sigmoid(), atol=1e-4)
    assert steps.prediction.seg_emitted == [True]
    packed = np.packbits((probabilities > 0.5).numpy().reshape(-1))
    different = np.unpackbits(packed ^ golden["final_mask_packed"].numpy().reshape(-1)).sum()
    assert different <= int((final.abs() < 1e-4).sum())


def test_batch_of_mixed_sizes_agrees_with_single_images(
    model: Sa2VAModel, alone: Callable, reference: Path
) -> None:
    images = [read_image(reference / "F2_preprocess" / f"{name}.png") for name in IMAGES]
    inputs = predict_inputs(model.processor, images, [[PHRASE], ["artery", PHRASE], [PHRASE]])
    together = model(inputs=inputs, mode="predict")
    assert [tuple(p.probabilities.shape) for p in together] == [
        (1, 299, 301),
        (2, 171, 333),
        (1, 250, 163),
    ]
    for name, prediction in zip(IMAGES, together, strict=True):
        single = alone(name).prediction.probabilities[0]
        torch.testing.assert_close(prediction.probabilities[-1], single, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["override_one_seg", "plain"])
def test_generate_agrees(reference: Path, case: str) -> None:
    model = build(reference, answer_mode="generate", max_new_tokens=16)
    if case == "override_one_seg":
        head = load_file(reference / "F5_generate" / "override_one_seg.safetensors")
        with torch.no_grad():
            model.mllm._core.lm_head.weight.copy_(next(iter(head.values())).float())
    image = read_image(reference / "F2_preprocess" / "img_a.png")
    inputs = predict_inputs(model.processor, [image], [[PHRASE]])
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
