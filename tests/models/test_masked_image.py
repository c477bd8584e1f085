"""Masked image pretraining: what is hidden, what is compared, and whose weights learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import MODELS

from projects.sa2va.errors import ConfigError
from projects.sa2va.models import MaskedImageModel, part_of
from projects.sa2va.models.masked_image import ReconstructionHead
from projects.sa2va.models.trained import trained_parameters
from tests.conftest import ROOT
from tests.tiny_experiment import TINY

SIDE, PATCH = 64, 16


def config(**more: Any) -> dict[str, Any]:
    """``model`` of a tiny pretraining."""
    tiny = Config.fromfile(ROOT / "configs/_base_/models/sa2va_tiny.py")
    tiny.merge_from_dict({"model": {"grounding": TINY["model"]["grounding"]}})
    processor = {"tokenizer": {"type": "byte_level"}, "image_size": SIDE, "image_only": True}
    own = {"patch_size": PATCH, "processor": processor, "grounding": tiny.model.grounding.to_dict()}
    return {"type": "MaskedImageModel", **own, **more}


@pytest.fixture(scope="module")
def model() -> MaskedImageModel:
    """Read it only."""
    return MODELS.build(config(noise=0.2, seen_weight=0.5, channels=3))


def batch(count: int = 2) -> dict[str, torch.Tensor]:
    return {"grounding_pixels": torch.randn(count, 3, SIDE, SIDE, generator=seeded(1))}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), ratio=st.floats(0.1, 0.9), count=st.integers(1, 4))
def test_whole_patches_are_hidden_as_many_in_each_image(model, seed, ratio, count):
    before, model.mask_ratio = model.mask_ratio, ratio
    try:
        hidden = model._draw(count, seeded(seed))
        again = model._draw(count, seeded(seed))
    finally:
        model.mask_ratio = before
    assert torch.equal(hidden, again)
    shares = F.avg_pool2d(hidden.float(), PATCH)
    assert set(shares.unique().tolist()) <= {0.0, 1.0}
    assert (shares.flatten(1).sum(1) == round(ratio * (SIDE // PATCH) ** 2)).all()


def test_nothing_of_what_is_hidden_reaches_the_encoder(model):
    first = model.eval().predict(batch())
    pixels = batch()["grounding_pixels"]
    hidden = first[0].hidden
    pixels[:, :, hidden] = 99.0
    second = model.predict({"grounding_pixels": pixels})
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.drawn, other.drawn)
        assert torch.equal(one.masked, other.masked)
        assert not torch.equal(one.image, other.image)
        assert torch.equal(one.hidden, hidden)
    pixels[:, :, ~hidden] = 0.0
    assert not torch.equal(model.predict({"grounding_pixels": pixels})[0].drawn, first[0].drawn)


def test_the_loss_is_the_difference_at_what_was_hidden(model, monkeypatch):
    inputs, seen = batch(), {}
    drawn = torch.randn(2, 3, SIDE, SIDE, generator=seeded(2))

    def reconstruct(pixels):
        seen["pixels"] = pixels
        return drawn

    monkeypatch.setattr(model, "_reconstruct", reconstruct)
    torch.manual_seed(7)
    losses = model.loss(inputs, [], [])
    torch.manual_seed(7)
    order = torch.rand(2, 16).argsort(1)  # the patches, from the smallest draw
    count, inside, outside = round(0.6 * 16), [], []
    for image in range(2):
        for at, patch in enumerate(order[image].tolist()):
            row, column = divmod(patch, SIDE // PATCH)
            box = (
                image,
                slice(None),
                *(slice(PATCH * i, PATCH * i + PATCH) for i in (row, column)),
            )
            difference = (drawn[box] - inputs["grounding_pixels"][box]).abs().mean()
            (inside if at < count else outside).append(difference)
            if at < count:
                assert (seen["pixels"][box] == 0).all()  # the learned value begins with the mean
            else:
                noise = (seen["pixels"][box] - inputs["grounding_pixels"][box]).detach().std()
                assert 0.15 < float(noise) < 0.25
    torch.testing.assert_close(losses["loss_hidden"], torch.stack(inside).mean())
    torch.testing.assert_close(losses["loss_seen"], 0.5 * torch.stack(outside).mean())


def test_the_same_seed_hides_the_same(model):
    values = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        values.append(float(model.loss(batch(), [], [])["loss_hidden"]))
    assert values[0] == values[1] != values[2]


def test_the_head_draws_pixels_where_they_are():
    head = ReconstructionHead(width=5, channels=3, learned=False)
    maps = [torch.randn(2, 5, 32 // n, 32 // n) for n in (4, 8, 16)]
    with torch.no_grad():
        for convolution in head.to_pixels[1:]:
            convolution.weight.zero_()
            convolution.bias.zero_()
    # A transposed convolution of kernel and stride 4 is the same, its weights in another order.
    first = head.to_pixels[0]
    weight = first.weight.reshape(3, 4, 4, 5).permute(3, 0, 1, 2)
    bias = first.bias.reshape(3, 4, 4).repeat(1, 8, 8)
    expected = F.conv_transpose2d(maps[0], weight, stride=4) + bias
    torch.testing.assert_close(head(maps), expected)


def test_everything_that_trains_gets_a_gradient_and_the_loss_falls():
    own = MODELS.build(config(channels=1))
    parts = {part_of(name) for name in trained_parameters(own)}
    assert parts == {"SAM2 image encoder", "reconstruction head"}
    optimiser = torch.optim.AdamW(trained_parameters(own).values(), lr=3e-3)
    ramp = torch.linspace(-1, 1, SIDE).expand(2, 3, SIDE, SIDE)
    values = []
    for step in range(25):
        torch.manual_seed(step)
        loss = own.loss({"grounding_pixels": ramp}, [], [])["loss_hidden"]
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            assert [n for n, p in trained_parameters(own).items() if p.grad is None] == []
        optimiser.step()
        values.append(float(loss))
    assert sum(values[-5:]) < 0.6 * sum(values[:5])


def test_the_encoder_has_the_names_of_the_joint_model(model):
    tiny = Config.fromfile(ROOT / "configs/_base_/models/sa2va_tiny.py")
    tiny.merge_from_dict({"model": {"grounding": TINY["model"]["grounding"]}})
    joint = MODELS.build({**tiny.model.grounding, "image_size": SIDE})
    names = {f"grounding.{n}" for n in joint.state_dict() if ".vision_encoder." in n}
    own = {n for n in model.trained_state_dict() if part_of(n) == "SAM2 image encoder"}
    assert own == names
    assert {row.part for row in model.load_report().rows} > {"reconstruction head"}


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"patch_size": 24}, "divides processor.image_size=64: 4, 8, 16, 32, 64"),
        ({"patch_size": 2}, "a multiple of 4"),
        ({"mask_ratio": 1.0}, "not all of the 16"),
        ({"mask_ratio": 0.01}, "at least one patch"),
        ({"hidden_pixel": "zero"}, "'learned' or 'mean'"),
        ({"channels": 2}, "3, or 1"),
        ({"noise": -0.1}, "at least 0"),
        ({"seen_weight": "1"}, "at least 0"),
    ],
)
def test_settings_that_cannot_be(wrong, text):
    with pytest.raises(ConfigError) as caught:
        MODELS.build(config(**wrong))
    key, value = next(iter(wrong.items()))
    assert caught.value.found == f"model.{key}={value!r}" and text in caught.value.expected


def test_prompts_and_masks_are_not_for_it(model):
    processor = {**config()["processor"], "image_only": False}
    with pytest.raises(ConfigError, match=r"processor\.image_only=False"):
        MODELS.build(config(processor=processor))
    with pytest.raises(ConfigError, match="it predicts no masks"):
        _ = model.grid_size
