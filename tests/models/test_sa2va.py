"""The joint model: losses, checkpoints, making."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from projects.sa2va.errors import CheckpointError, ConfigError, DataError
from projects.sa2va.models import Sa2VAModel

from .conftest import PHRASE, blob_masks, build, picture, predict_inputs, total, train_batch

KEYS = {"loss_mask", "loss_dice", "loss_language"}


@pytest.fixture
def model() -> Sa2VAModel:
    """A model that a test may change."""
    return build()


def slice_batch(batch: dict[str, Any], index: int) -> dict[str, Any]:
    """One sample of a training batch, still padded to the batch's length."""
    tiles = batch["inputs"]["tiles_per_image"]
    inputs = {
        name: batch["inputs"][name][index : index + 1]
        for name in ("input_ids", "labels", "attention_mask", "grounding_pixels")
    }
    first = sum(tiles[:index])
    inputs["pixel_values"] = batch["inputs"]["pixel_values"][first : first + tiles[index]]
    inputs["tiles_per_image"] = [tiles[index]]
    return {"inputs": inputs, "masks": [batch["masks"][index]], "meta": [batch["meta"][index]]}


# ---------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("counts", [(0,), (0, 0), (1,), (0, 1, 3), (3, 0)])
def test_any_mixture_gives_finite_losses_and_a_gradient_for_all(model, counts) -> None:
    """A parameter without a gradient stalls DDP and ZeRO-3."""
    sizes = [(64, 64), (40, 90), (75, 31)][: len(counts)]
    losses = model(**train_batch(model.processor, counts, sizes), mode="loss")
    assert set(losses) == KEYS
    assert all(bool(v.isfinite()) and v.dtype == torch.float32 for v in losses.values())
    total(losses).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
        else:
            assert parameter.grad is None, name
    mask_gradient = float(model.seg_projector[0].weight.grad.abs().sum())
    assert (mask_gradient > 0) == (sum(counts) > 0)
    assert (float(losses["loss_mask"]) > 0) == (sum(counts) > 0)
    assert float(losses["loss_language"]) > 0


def test_without_labels_the_language_loss_is_zero_and_still_has_gradients(model) -> None:
    batch = train_batch(model.processor, (0, 0))
    batch["inputs"]["labels"].fill_(-100)
    losses = model(**batch, mode="loss")
    assert [float(losses[key]) for key in sorted(KEYS)] == [0.0, 0.0, 0.0]
    total(losses).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_batch_of_mixed_sizes_is_the_weighted_mean_of_singles(frozen_model) -> None:
    counts = (1, 3, 0, 2)
    sizes = [(64, 64), (40, 90), (75, 31), (128, 128)]
    batch = train_batch(frozen_model.processor, counts, sizes)
    with torch.no_grad():
        together = frozen_model(**batch, mode="loss")
        singles = [frozen_model(**slice_batch(batch, i), mode="loss") for i in range(4)]
    labelled = [int((row[1:] != -100).sum()) for row in batch["inputs"]["labels"]]
    weights = {"loss_mask": counts, "loss_dice": counts, "loss_language": labelled}
    for key, shares in weights.items():
        values = np.array([float(single[key]) for single in singles])
        assert float(together[key]) == pytest.approx(np.average(values, weights=shares), rel=1e-5)


def test_language_loss_is_cross_entropy_by_hand(frozen_model) -> None:
    batch = train_batch(frozen_model.processor, (0,))
    inputs = batch["inputs"]
    core = frozen_model.mllm._core
    with torch.no_grad():
        loss = frozen_model(**batch, mode="loss")["loss_language"]
        logits = core(
            input_ids=inputs["input_ids"],
            pixel_values=inputs["pixel_values"],
            attention_mask=inputs["attention_mask"],
        ).logits[0]
    labels = inputs["labels"][0].tolist()
    terms = [
        -float(F.log_softmax(logits[position - 1].double(), dim=-1)[label])
        for position, label in enumerate(labels)
        if label != -100
    ]
    answer = frozen_model.processor.tokenizer.encode("It is a vessel.<|im_end|>")
    assert len(terms) == len(answer)
    assert float(loss) == pytest.approx(np.mean(terms), rel=1e-5)


def test_loss_weights_scale_their_losses() -> None:
    changed = build(
        language_loss_weight=0.25, mask_loss=dict(type="MaskLoss", ce_weight=1.0, dice_weight=2.0)
    )
    model = build()
    batch = train_batch(model.processor)
    with torch.no_grad():
        plain, weighted = (m(**batch, mode="loss") for m in (model, changed))
    ratios = {key: float(weighted[key] / plain[key]) for key in KEYS}
    expected = {"loss_mask": 0.5, "loss_dice": 4.0, "loss_language": 0.25}
    assert ratios == pytest.approx(expected, rel=1e-5)


def test_logits_are_computed_at_labelled_positions_only(
    frozen_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    original = frozen_model.mllm.logits
    monkeypatch.setattr(
        frozen_model.mllm, "logits", lambda hidden: rows.append(len(hidden)) or original(hidden)
    )
    batch = train_batch(frozen_model.processor, (1, 2))
    with torch.no_grad():
        frozen_model(**batch, mode="loss")
    answer = len(frozen_model.processor.answer_ids())
    assert rows == [3 * answer]
    assert rows[0] < batch["inputs"]["input_ids"].numel() / 3


def test_seg_and_masks_that_do_not_pair_up_name_the_sample(model) -> None:
    batch = train_batch(model.processor, (1, 2, 1))
    batch["masks"][1] = batch["masks"][1][:1]
    with pytest.raises(DataError, match=r"frame_1 \(2 \[SEG\], 1 masks\)\n") as error:
        model(**batch, mode="loss")
    assert "frame_0" not in str(error.value) and "frame_2" not in str(error.value)
    batch["masks"][2] = blob_masks(0, 3)
    with pytest.raises(DataError, match=r"frame_1 .*frame_2 \(1 \[SEG\], 3 masks\)"):
        model(**batch, mode="loss")
    with pytest.raises(ValueError, match="3 samples, 0 entries in masks"):
        model(inputs=batch["inputs"], mode="loss")


def test_an_even_count_in_the_wrong_samples_is_an_error_too(model) -> None:
    batch = train_batch(model.processor, (1, 2))
    batch["masks"].reverse()
    with pytest.raises(DataError, match=r"frame_0 \(1 .*frame_1 \(2 "):
        model(**batch, mode="loss")


def test_bfloat16_with_autocast_on_the_cpu() -> None:
    half = dict(dtype="bfloat16")
    model = build(autocast="bfloat16", mllm=half, grounding=half)
    losses = model(**train_batch(model.processor, (0, 1, 3)), mode="loss")
    assert all(bool(v.isfinite()) and v.dtype == torch.float32 for v in losses.values())
    total(losses).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trained)
    inputs = predict_inputs(model.processor, [picture(0)], [[PHRASE]])
    prediction = model.eval()(inputs=inputs, mode="predict")[0]
    assert prediction.probabilities.dtype == torch.float32
    model.answer_mode = "generate"
    assert len(model(inputs=inputs, mode="predict")) == 1


# ----------------------------------------------------------------------------------- checkpoints


def trained(seed: int = 0, **changes: Any) -> Sa2VAModel:
    """A model whose trained parts all differ from their start."""
    model = build(**changes)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.02
    return model


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(grounding=dict(train_image_encoder=False)),
        dict(grounding=dict(train_image_encoder=False, train_mask_decoder=False)),
        dict(mllm=dict(config=dict(tie_word_embeddings=True))),
        dict(mllm=dict(lora=None, train_token_rows=False)),
    ],
)
def test_a_checkpoint_of_what_trains_reloads_bit_equal(changes: dict) -> None:
    model, fresh = trained(**changes).eval(), build(**changes).eval()
    state = model.trained_state_dict()
    inputs = predict_inputs(model.processor, [picture(0), picture(1, (40, 90))], [[PHRASE]] * 2)
    expected, untrained = (m(inputs=inputs, mode="predict") for m in (model, fresh))
    assert not torch.equal(expected[0].probabilities, untrained[0].probabilities)
    counts = fresh.load_trained_state_dict(state, "last.pth")
    assert sum(counts.values()) == len(state)
    for one, other in zip(expected, fresh(inputs=inputs, mode="predict"), strict=True):
        assert torch.equal(one.probabilities, other.probabilities)
    batch = train_batch(model.processor)
    with torch.no_grad():
        losses, reloaded = model(**batch, mode="loss"), fresh(**batch, mode="loss")
    assert all(torch.equal(losses[key], reloaded[key]) for key in KEYS)


def test_trained_state_is_a_copy_of_what_trains_only(model) -> None:
    state = model.trained_state_dict()
    assert set(state) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert not any("base_layer" in n or "vision_tower" in n for n in state)
    name = "seg_projector.0.weight"
    state[name].zero_()
    assert float(model.seg_projector[0].weight.abs().sum()) > 0
    assert not state[name].requires_grad and state[name].device.type == "cpu"


def test_a_checkpoint_that_does_not_fit_is_refused_by_part(model) -> None:
    state = model.trained_state_dict()
    before = {name: value.clone() for name, value in state.items()}
    lora = next(name for name in state if ".lora_A" in name)
    decoder = next(name for name in state if "mask_decoder" in name)
    cases = {
        r"1 missing \(LoRA\): .*lora_A": {n: v for n, v in state.items() if n != lora},
        r"1 unexpected \(other\): extra.weight": {**state, "extra.weight": torch.zeros(1)},
        r"1 other shape \(SAM2 mask decoder\): .* \(7,\) in the file, \(": {
            **state,
            decoder: torch.zeros(7),
        },
        r"2 missing \(LoRA, \[SEG\] projector\)": {
            n: v for n, v in state.items() if n not in (lora, "seg_projector.0.bias")
        },
    }
    for message, wrong in cases.items():
        changed = {n: v + 1 for n, v in wrong.items()}
        with pytest.raises(CheckpointError, match=message) as error:
            model.load_trained_state_dict(changed, "epoch_1.pth")
        assert "epoch_1.pth does not fit" in error.value.found
    after = model.trained_state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before), "nothing was loaded by half"


def test_a_checkpoint_of_another_lora_rank_is_refused(model) -> None:
    state = build(mllm=dict(lora=dict(r=3))).trained_state_dict()
    with pytest.raises(CheckpointError, match=r"28 other shape \(LoRA\).*\(3, 32\) in the file"):
        model.load_trained_state_dict(state, "x.pth")


# ---------------------------------------------------------------------------------------- making


def test_same_seed_same_model_and_the_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one = build().state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)
    same, other = build().state_dict(), build(seed=1).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    differ = {name.split(".")[0] for name in one if not torch.equal(one[name], other[name])}
    assert differ == {"seg_projector"}


def test_init_weights_of_mmengine_redraws_nothing(model) -> None:
    before = {n: v.clone() for n, v in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(float(v.abs().max()) == 0 for n, v in before.items() if ".lora_B" in n)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="answer_mode='guess'"):
        build(answer_mode="guess")
    with pytest.raises(ConfigError, match="dtype 'bf16'"):
        build(autocast="bf16")


def test_pixels_as_read_give_the_losses_of_pixels_normalised_for_training() -> None:
    """Training items hold uint8; mean and deviation are the exact ones, as in the reference."""
    model = build(processor=dict(reference_numerics=True))
    batch = train_batch(model.processor, [1, 2])
    images = [picture(i) for i in range(2)]
    read = [model.processor.pixels(image) for image in images]
    raw = {
        "grounding_pixels": torch.stack([one["grounding_pixels"] for one in read]),
        "pixel_values": torch.cat([one["pixel_values"] for one in read]),
    }
    assert all(tensor.dtype == torch.uint8 for tensor in raw.values())
    found = model(**{**batch, "inputs": batch["inputs"] | raw}, mode="loss")
    assert {k: float(v) for k, v in found.items()} == {
        k: float(v) for k, v in model(**batch, mode="loss").items()
    }
