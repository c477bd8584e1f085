"""Losses and gradients of one training batch against the reference (F6_train, tiny weights)."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from projects.sa2va.datasets.image_io import read_image
from projects.sa2va.models import MaskLoss, Sa2VAModel

from .reference_model import build, load_trained, training_parameters

# The reference divides the sampled Dice by 10 + 1e-4, which a tolerance of 1e-5 would not see.
LOSS = 5e-6
MODES = {"full": 0, "sample_points": 12544}
RUNS = [
    *((case, mode) for case in ("one_obj", "multi_obj") for mode in MODES),
    ("no_seg", "full"),
]
PREFIXES = {
    "text_hidden_fcs": "text_hidden_fcs.",
    "sam_mask_decoder": "grounding_encoder.sam2_model.sam_mask_decoder.",
    "mlp1": "mllm.model.mlp1.",
}


@dataclass
class Run:
    """One forward and backward pass: losses, decoded logits, gradients by the reference's names."""

    losses: dict[str, float]
    logits: Tensor
    iou: Tensor
    seg_hidden: Tensor
    seg_embed: Tensor
    gradients: dict[str, Tensor | None]


@pytest.fixture(scope="module")
def reference(shared_dir: Path) -> Path:
    return shared_dir / "reference"


@pytest.fixture(scope="module")
def model(reference: Path) -> Sa2VAModel:
    model = build(
        reference,
        mllm={"lora": {"r": 8, "lora_alpha": 16}},
        mask_loss={"type": "MaskLoss", "supervision": "nearest"},
    ).train()
    load_trained(reference, model)
    # The reference trains whole tables. Here their gradients are only looked at.
    for table in (
        model.mllm._core.get_input_embeddings(),
        model.mllm._core.get_output_embeddings(),
    ):
        table.weight.requires_grad_(True)
    # Most of the time goes into SAM2's frozen encoder, and all cases share their two images.
    encoder = model.grounding.model.vision_encoder
    encoder.forward = functools.cache(encoder.forward)
    return model


@functools.cache
def stored(reference: Path, case: str) -> tuple[dict[str, Tensor], dict]:
    folder = reference / "F6_train"
    return load_file(folder / f"{case}.safetensors"), json.loads(
        (folder / f"{case}.json").read_text()
    )


@functools.cache
def pixels(reference: Path, model: Sa2VAModel, names: tuple[str, ...]) -> dict[str, Tensor]:
    processor = model.processor
    images = [read_image(reference / "F2_preprocess" / f"{name}.png") for name in names]
    return {
        "pixel_values": torch.cat([processor.tiles(image) for image in images]),
        "grounding_pixels": torch.stack(
            [processor.grounding_pixels(image, training=True) for image in images]
        ),
    }


def true_masks(reference: Path, case: str) -> list[Tensor]:
    """Per sample uint8 [K, H, W]."""
    golden, meta = stored(reference, case)
    if "masks_shape" not in meta:
        return [torch.zeros(0, 1, 1, dtype=torch.uint8)] * 2
    return [
        unpacked(golden[f"gt_masks_packed_{index}"], shape)
        for index, shape in enumerate(meta["masks_shape"])
    ]


def unpacked(bits: Tensor, shape: list[int]) -> Tensor:
    flat = np.unpackbits(bits.numpy())[: int(np.prod(shape))]
    return torch.from_numpy(flat.reshape(shape))


@pytest.fixture(scope="module")
def run(reference: Path, model: Sa2VAModel) -> Callable[[str, str], Run]:
    """Each case in each mode, once; the reference's own points are given to the loss."""
    names = training_parameters(reference, model)

    @functools.cache
    def of(case: str, mode: str) -> Run:
        golden, meta = stored(reference, case)
        inputs = {
            "input_ids": golden["input_ids"],
            "labels": golden["labels"],
            "attention_mask": golden["attention_mask"].long(),
            **pixels(reference, model, tuple(meta["images"])),
        }
        model.zero_grad(set_to_none=True)
        model.mask_loss.num_points = MODES[mode]
        seen: list[Any] = []
        decode, loss = model.grounding.decode, model.mask_loss.forward
        hook = model.seg_projector.register_forward_hook(
            lambda _, given, out: seen.append((given[0], out))
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                model.grounding,
                "decode",
                lambda *given: seen.append((out := decode(*given))[:2]) or out,
            )
            if mode == "sample_points":
                points = list(golden["points_coords"].split(5))
                patch.setattr(
                    model.mask_loss,
                    "forward",
                    lambda logits, labels, **more: loss(logits, labels, points=points, **more),
                )
            losses = model(
                inputs=inputs, masks=true_masks(reference, case), meta=[{}, {}], mode="loss"
            )
        hook.remove()
        sum(losses.values()).backward()
        (hidden, embedding), (logits, iou) = (tuple(x.detach() for x in pair) for pair in seen)
        return Run(
            {name: float(value.detach()) for name, value in losses.items()},
            logits,
            iou,
            hidden,
            embedding,
            {name: parameter.grad for name, parameter in names.items()},
        )

    return of


@pytest.mark.parametrize(("case", "mode"), RUNS)
def test_losses_agree(run: Callable, reference: Path, case: str, mode: str) -> None:
    expected = stored(reference, case)[1]["loss"][mode]
    losses = run(case, mode).losses
    assert losses["loss_mask"] == pytest.approx(expected["loss_mask"], rel=LOSS)
    assert losses["loss_dice"] == pytest.approx(expected["loss_dice"], rel=LOSS)
    assert losses["loss_language"] == pytest.approx(expected["llm_loss"], rel=LOSS)
    assert sum(losses.values()) == pytest.approx(expected["total"], rel=LOSS)


@pytest.mark.parametrize(("case", "mode"), RUNS)
def test_gradients_agree(run: Callable, reference: Path, case: str, mode: str) -> None:
    """Stored tensors, and the norms of every parameter and every group."""
    golden, meta = stored(reference, case)
    expected, gradients = meta["loss"][mode], run(case, mode).gradients
    for key, value in golden.items():
        if not key.startswith(f"{mode}.grad."):
            continue
        own = gradients[key.removeprefix(f"{mode}.grad.")]
        assert float((own - value).norm()) <= 1e-4 * float(value.norm()), key

    norms = {name: 0.0 if g is None else float(g.norm()) for name, g in gradients.items()}
    per_parameter = expected["grad_norm_per_parameter"]
    assert per_parameter.keys() | set(expected["trainable_without_grad"]) == norms.keys()
    for name, norm in per_parameter.items():
        # A bias of keys changes no attention: its gradient is rounding alone, up to 2e-7.
        assert norms[name] == pytest.approx(norm, rel=1e-4, abs=1e-6), name
    for group, norm in expected["grad_norm"].items():
        own = sum(n**2 for name, n in norms.items() if in_group(name, group)) ** 0.5
        assert own == pytest.approx(norm, rel=1e-4, abs=1e-6), group


def in_group(name: str, group: str) -> bool:
    if group in PREFIXES:
        return name.startswith(PREFIXES[group])
    return (
        group == "all_trainable"
        or {
            "lora": ".lora_",
            "embed_tokens_saved": ".embed_tokens.",
            "lm_head_saved": ".lm_head.",
        }[group]
        in name
    )


def test_what_no_loss_reaches_is_frozen(reference: Path, model: Sa2VAModel) -> None:
    """The reference marks its IoU and object-score heads trainable, and they get no gradient."""
    names = stored(reference, "one_obj")[1]["loss"]["full"]["trainable_without_grad"]
    own = training_parameters(reference, model)
    assert sorted(name for name, p in own.items() if not p.requires_grad) == sorted(names)


@pytest.mark.parametrize("case", ["one_obj", "multi_obj"])
def test_what_the_losses_see_agrees(run: Callable, reference: Path, case: str) -> None:
    golden, meta = stored(reference, case)
    own = run(case, "full")
    close = functools.partial(torch.testing.assert_close, rtol=0)
    close(own.seg_hidden, golden["seg_hidden"], atol=2e-5)
    close(own.seg_embed, golden["seg_embed"], atol=2e-5)
    close(own.logits, golden["pred_masks_unique"], atol=1e-4)
    close(own.iou, golden["iou_scores_unique"], atol=1e-5)
    loss = MaskLoss(supervision="nearest")
    shrunk = [loss._meet(own.logits, mask.float())[1] for mask in true_masks(reference, case)]
    expected = unpacked(golden["gt_lowres_packed_unique"], list(own.logits.shape))
    assert torch.equal(torch.cat(shrunk), expected.float())
    slots = [MaskLoss._slots(len(mask)).tolist() for mask in true_masks(reference, case)]
    assert slots == meta["object_index_of_the_5_slots"]


@pytest.mark.parametrize(("case", "same"), [("one_obj", True), ("multi_obj", False)])
def test_objects_are_weighed_equally_by_default(
    run: Callable, reference: Path, case: str, same: bool
) -> None:
    """Samples of one object each weigh the same in both; one and two objects do not."""
    own, masks = run(case, "full"), true_masks(reference, case)
    default = MaskLoss(supervision="nearest")(own.logits, masks)
    objects = [mask[None] for sample in masks for mask in sample]
    single = [
        MaskLoss(supervision="nearest")(logits[None], [mask])
        for logits, mask in zip(own.logits, objects, strict=True)
    ]
    for name, value in default.items():
        mean = sum(float(losses[name]) for losses in single) / len(single)
        assert float(value) == pytest.approx(mean, rel=1e-6)
        assert (float(value) == pytest.approx(own.losses[name], rel=1e-5)) is same, name


def test_language_only_batch_has_no_mask_loss_and_no_mask_gradient(run: Callable) -> None:
    own = run("no_seg", "full")
    assert own.losses["loss_mask"] == own.losses["loss_dice"] == 0.0
    for name, gradient in own.gradients.items():
        if name.startswith(("text_hidden_fcs.", PREFIXES["sam_mask_decoder"])):
            assert gradient is None or not gradient.any(), name
