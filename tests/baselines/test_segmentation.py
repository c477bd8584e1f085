"""A network as a model of this harness: losses, predictions, classes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from projects.sa2va.baselines.segmentation import _channels
from projects.sa2va.errors import ConfigError, DataError

from .conftest import DYNUNET, PHRASE, PROCESSOR, UNET, build, frames, inputs_of

STEPS = 60


def test_it_learns_four_frames_by_heart():
    images, truth = frames()
    model = build().train()
    batch = inputs_of(images, [[PHRASE]] * 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(STEPS):
        loss = model(batch, truth, [{}] * 4)["loss_mask"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 4
    predictions = model.eval()(batch, mode="predict")
    for prediction, mask in zip(predictions, truth, strict=True):
        found = prediction.probabilities >= 0.5
        assert 2 * (found & mask.bool()).sum() / (found.sum() + mask.sum()) > 0.85


def test_predictions_are_of_the_original_size_and_by_the_path_of_sa2va():
    model = build(in_channels=1).eval()
    images, _ = frames(2)
    images[1] = images[1][:40, :52]
    inputs = inputs_of(images, [[PHRASE], []])
    full, none = model(inputs, mode="predict")
    assert full.probabilities.shape == (1, 64, 64) and none.probabilities.shape == (0, 40, 52)
    assert (full.answers, full.seg_emitted) == ([""], [True])
    inputs["phrases"][1] = [PHRASE]
    cut = model(inputs, mode="predict")[1].probabilities
    with torch.no_grad():
        logits = model.network(inputs["grounding_pixels"].mean(1, keepdim=True))
    expected = F.interpolate(logits[1:], (40, 52), mode="bilinear")[0].sigmoid()
    assert cut.dtype == torch.float32 and torch.allclose(cut, expected, atol=1e-6)
    assert model.grid_size == (64, 64)


def test_prediction_takes_no_truth():
    images, truth = frames(1)
    model, inputs = build().eval(), inputs_of(images, [[PHRASE]])
    with pytest.raises(ValueError, match="never masks or meta"):
        model(inputs, truth, [{}], mode="predict")


@settings(max_examples=10, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(5, 40), st.integers(5, 40)), min_size=1, max_size=3),
    asked=st.data(),
)
def test_each_map_is_compared_with_its_own_label(sizes, asked):
    model = build(classes=["a", ["b", "c"]])
    phrases = [
        asked.draw(st.sampled_from([["a"], ["c"], ["b", "a"], ["a", "c"], []])) for _ in sizes
    ]
    generator = torch.Generator().manual_seed(len(sizes))
    masks = [
        (torch.rand(len(own), *size, generator=generator) > 0.5).byte()
        for own, size in zip(phrases, sizes, strict=True)
    ]
    inputs = {
        "grounding_pixels": torch.randn(len(sizes), 3, 64, 64, generator=generator),
        "phrases": phrases,
    }
    loss = model(inputs, masks, [{}] * len(sizes))["loss_mask"]
    logits = model.network(inputs["grounding_pixels"])
    each = []
    for own, asked_for, labels in zip(logits, phrases, masks, strict=True):
        for phrase, label in zip(asked_for, labels, strict=True):
            one = own[{"a": 0, "b": 1, "c": 1}[phrase]][None, None]
            one = F.interpolate(one, label.shape, mode="bilinear")
            each.append(model.criterion(one, label[None, None].float()))
    expected = torch.stack(each).mean() if each else torch.zeros(())
    assert torch.allclose(loss, expected, atol=1e-5)
    loss.backward()  # also without any phrase: other processes may wait for these gradients
    assert all(p.grad is not None for p in model.parameters())


def test_classes_have_channels_of_their_own():
    images, _ = frames(1)
    model = build(classes=["left", ["right", "the right one"]]).eval()
    maps = model(inputs_of(images, [["right", "left", "the right one"]]), mode="predict")[0]
    right, left, again = maps.probabilities
    assert torch.equal(right, again) and not torch.equal(right, left)


def test_a_phrase_that_is_no_class_names_phrase_and_frame():
    images, truth = frames(2)
    batch = inputs_of(images, [[PHRASE], ["catheter"]])
    with pytest.raises(DataError) as caught:
        build()(batch, truth, [{"frame": "one"}, {"frame": "two"}])
    assert "catheter (frames two)" in caught.value.found and PHRASE in caught.value.expected
    with pytest.raises(DataError, match=r"model[.]classes"):
        build().eval()(batch, mode="predict")


@pytest.mark.parametrize("classes", [[], PHRASE, ["a", "a"], ["a", ["b", "a"]], [""], [3], [[]]])
def test_classes_that_cannot_be(classes):
    with pytest.raises(ConfigError, match=r"model[.]classes"):
        _channels(classes)


def test_settings_that_cannot_be():
    with pytest.raises(ConfigError, match=r"processor[.]image_only=True"):
        build(processor={**PROCESSOR, "image_only": False})
    with pytest.raises(ConfigError, match=r"model[.]in_channels"):
        build(in_channels=2)
    with pytest.raises(ConfigError, match="merge_lora"):
        build().merge_lora()


def test_deep_supervision_weighs_the_coarser_outputs_half_each_time():
    images, truth = frames(2)
    model = build(network=DYNUNET).train()
    inputs = inputs_of(images, [[PHRASE]] * 2)
    loss = model(inputs, truth, [{}] * 2)["loss_mask"]
    outputs = model.network(inputs["grounding_pixels"])
    labels = torch.stack(truth).float()
    parts = [model.criterion(outputs[:, depth], labels) for depth in range(3)]
    assert torch.isclose(loss, (parts[0] + parts[1] / 2 + parts[2] / 4) / 1.75, rtol=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())  # DDP waits for each
    assert model.eval()(inputs, mode="predict")[0].probabilities.shape == (1, 64, 64)


def test_bfloat16_is_near_float32():
    images, truth = frames(2)
    batch = inputs_of(images, [[PHRASE]] * 2)
    losses = [build(network=UNET, autocast=a)(batch, truth, [{}] * 2) for a in (None, "bfloat16")]
    exact, rounded = (float(loss["loss_mask"].detach()) for loss in losses)
    assert rounded != exact and abs(rounded - exact) < 0.02 * exact
