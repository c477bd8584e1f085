"""The high-resolution head over SAM2's masks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from projects.sa2va.checkpoints.whole_weights import WholeWeights
from projects.sa2va.errors import ConfigError
from projects.sa2va.models import Sa2VAModel
from projects.sa2va.models.high_resolution import HighResolutionHead

from .conftest import PHRASE, build, picture, train_batch


def inputs(model: Sa2VAModel) -> dict:
    item = model.processor.prediction_item(picture(0, (50, 70)), [PHRASE, "catheter"])
    return {
        "pixel_values": item["pixel_values"],
        "tiles_per_image": [len(item["pixel_values"])],
        "grounding_pixels": item["grounding_pixels"][None],
        "prompts": [item["prompts"]],
        "sizes": [item["size"]],
    }


def batch(model: Sa2VAModel) -> dict:
    return train_batch(model.processor, [2, 0])


@pytest.mark.parametrize(("stride", "context"), [(1, 4), (2, 4), (2, 32)])
def test_switched_on_over_trained_weights_it_changes_nothing(stride: int, context: int) -> None:
    head = dict(stride=stride, width=2, context=context)
    plain, more = build(), build(high_resolution=head)
    more.load_state_dict(plain.state_dict(), strict=False)
    before, after = plain.eval().predict(inputs(plain)), more.eval().predict(inputs(more))
    assert torch.equal(before[0].probabilities, after[0].probabilities)
    assert plain.grid_size == (16, 16) and more.grid_size == (64 // stride,) * 2


@pytest.mark.parametrize(("stride", "context"), [(1, 4), (2, 4), (1, 16)])
def test_it_learns_and_all_of_it_gets_a_gradient(stride: int, context: int) -> None:
    model = build(high_resolution=dict(stride=stride, width=2, context=context)).train()
    own = dict(model.high_resolution.named_parameters())
    optimizer = torch.optim.SGD(own.values(), lr=0.1)
    for _ in range(2):  # the zero convolution lets nothing through in the first step
        optimizer.zero_grad()
        sum(model(**batch(model), mode="loss").values()).backward()
        optimizer.step()
    without = [name for name, p in own.items() if p.grad is None or not p.grad.any()]
    # A bias in front of an instance norm is taken out again by it.
    assert all(name.endswith("bias") for name in without), without
    assert set(own) <= {n.removeprefix("high_resolution.") for n in model.trained_state_dict()}


def test_the_load_report_names_it() -> None:
    rows = {row.part: row for row in build(high_resolution=dict(width=2)).load_report().rows}
    head = rows["high-resolution head"]
    assert head.source.startswith("random weights") and head.tensors > 10
    assert "high-resolution head" not in {row.part for row in build().load_report().rows}


def test_samples_without_objects_keep_it_in_the_backward_pass() -> None:
    model = build(high_resolution=dict(stride=2, width=2)).train()
    sum(model(**train_batch(model.processor, [0]), mode="loss").values()).backward()
    assert all(p.grad is not None for p in model.high_resolution.parameters())


def test_a_prompt_gets_the_stem_of_its_own_image() -> None:
    head = HighResolutionHead(embedding_size=4, stride=1, width=2)
    torch.nn.init.normal_(head.correction.weight)
    images, logits, upscaled = (
        torch.randn(2, 3, 32, 32),
        torch.randn(2, 8, 8),
        torch.randn(2, 4, 8, 8),
    )
    together = head(logits, upscaled, head.stem(images))
    for row in range(2):
        alone = head(
            logits[row : row + 1], upscaled[row : row + 1], head.stem(images[row : row + 1])
        )
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)
    swapped = head(logits, upscaled, head.stem(images.flip(0)))
    assert not torch.allclose(swapped, together, atol=1e-2)
    enlarged = F.interpolate(logits[None], (32, 32), mode="bilinear")[0]
    assert not torch.allclose(enlarged, together, atol=1e-2)


@pytest.mark.parametrize(("context", "reach"), [(4, 32), (32, 128)])
def test_context_widens_what_a_map_of_the_stem_sees(context: int, reach: int) -> None:
    """``reach``: about the side in px of what one cell of stride 4 sees, by its gradient."""
    head = HighResolutionHead(embedding_size=4, stride=2, width=2, context=context)
    for module in head.modules():  # an instance norm alone would let every pixel see all others
        if isinstance(module, torch.nn.InstanceNorm2d):
            module.eval().forward = torch.nn.Identity().forward
    images = torch.randn(1, 3, 256, 256, requires_grad=True)
    maps = head.stem(images)
    assert [tuple(m.shape[1:]) for m in maps] == [(4, 128, 128), (8, 64, 64)]
    maps[-1][..., 32, 32].sum().backward()
    seen = images.grad.abs().sum(dim=1)[0].nonzero()
    side = int((seen.amax(dim=0) - seen.amin(dim=0)).max()) + 1
    assert reach / 2 < side < reach * 4, side


def test_the_seed_makes_the_weights_and_the_generator_is_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, two, other = (HighResolutionHead(4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(one.join.conv1.conv.weight, other.join.conv1.conv.weight)


@pytest.mark.parametrize(
    "wrong", [dict(stride=4), dict(width=0), dict(context=12), [("stride", 2)]]
)
def test_wrong_settings(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"model\.high_resolution"):
        build(high_resolution=wrong)


def test_the_single_mask_is_decoded_where_asked_for() -> None:
    """An untrained IoU head would choose among three at random."""
    single = build(grounding=dict(multimask=False)).eval()
    features = single.grounding.encode(torch.randn(1, 3, 64, 64))
    decoded = single.grounding.decode(features, torch.randn(1, 64), with_upscaled=True)
    assert decoded.iou.shape == (1, 1)
    assert decoded.upscaled.shape == (1, single.grounding.embedding_size, 16, 16)
    three = build().eval().grounding.decode(features, torch.randn(1, 64))
    assert three.iou.shape == (1, 3) and three.upscaled is None


FPN = dict(grounding=dict(config=dict(vision_config=dict(fpn_top_down_levels=[0, 1, 2, 3]))))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(high_resolution=dict(stride=2, width=2)), r"model\.high_resolution"),
        (dict(grounding=dict(multimask=False)), r"multimask=False"),
        (FPN, r"fpn_top_down_levels"),
    ],
)
def test_what_published_code_does_not_know_is_not_exported_to_it(changes: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){named}.*--to trainable"):
        WholeWeights(build(**changes), merge=True, dtype=None)
