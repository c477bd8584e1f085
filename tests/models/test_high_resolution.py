"""The high-resolution head over SAM2's masks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from projects.sa2va.checkpoints.whole_weights import WholeWeights
from projects.sa2va.errors import ConfigError
from projects.sa2va.models import Sa2VAModel
from projects.sa2va.models.high_resolution import HighResolutionHead, PromptModulation

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


@pytest.mark.parametrize(
    ("stride", "context", "prompted"), [(1, 4, False), (2, 4, True), (2, 32, False)]
)
def test_switched_on_over_trained_weights_it_changes_nothing(
    stride: int, context: int, prompted: bool
) -> None:
    head = dict(stride=stride, width=2, context=context, prompted=prompted)
    plain, more = build(), build(high_resolution=head)
    more.load_state_dict(plain.state_dict(), strict=False)
    before, after = plain.eval().predict(inputs(plain)), more.eval().predict(inputs(more))
    assert torch.equal(before[0].probabilities, after[0].probabilities)
    assert plain.grid_size == (16, 16) and more.grid_size == (64 // stride,) * 2


@pytest.mark.parametrize(
    ("stride", "context", "prompted"), [(1, 4, False), (2, 4, True), (1, 16, True)]
)
def test_it_learns_and_all_of_it_gets_a_gradient(stride: int, context: int, prompted: bool) -> None:
    head = dict(stride=stride, width=2, context=context, prompted=prompted)
    model = build(high_resolution=head).train()
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
    head = HighResolutionHead(embedding_size=4, prompt_size=3, stride=1, width=2, prompted=True)
    for p in [head.correction.weight, *head.modulations.parameters()]:
        torch.nn.init.normal_(p)
    images, logits, upscaled, prompts = (
        torch.randn(2, 3, 32, 32),
        torch.randn(2, 8, 8),
        torch.randn(2, 4, 8, 8),
        torch.randn(2, 3),
    )
    together = head(logits, upscaled, head.stem(images), prompts)
    for row in range(2):
        own = slice(row, row + 1)
        alone = head(logits[own], upscaled[own], head.stem(images[own]), prompts[own])
        torch.testing.assert_close(together[own], alone, rtol=1e-4, atol=1e-5)
    swapped = head(logits, upscaled, head.stem(images.flip(0)), prompts)
    assert not torch.allclose(swapped, together, atol=1e-2)
    enlarged = F.interpolate(logits[None], (32, 32), mode="bilinear")[0]
    assert not torch.allclose(enlarged, together, atol=1e-2)


@pytest.mark.parametrize("prompted", [False, True])
def test_the_prompt_alone_tells_masks_of_one_image_apart_only_where_it_is_read(
    prompted: bool,
) -> None:
    head = HighResolutionHead(embedding_size=4, prompt_size=3, width=2, prompted=prompted)
    for p in [head.correction.weight, *head.modulations.parameters()]:
        torch.nn.init.normal_(p)
    stem = tuple(m.expand(2, -1, -1, -1) for m in head.stem(torch.randn(1, 3, 32, 32)))
    one, two = head(torch.zeros(2, 8, 8), torch.zeros(2, 4, 8, 8), stem, torch.randn(2, 3))
    assert torch.allclose(one, two, atol=1e-5) is not prompted


def test_a_modulation_is_a_scale_and_a_shift_of_every_channel() -> None:
    layer = PromptModulation(prompt_size=3, channels=2)
    maps, prompts = torch.randn(4, 2, 5, 5), torch.randn(4, 3)
    assert torch.equal(layer(maps, prompts), maps)  # none at the start
    torch.nn.init.normal_(layer.scale_and_shift.weight)
    scale, shift = (prompts @ layer.scale_and_shift.weight.T).split(2, dim=1)
    for n, c in [(0, 0), (3, 1)]:
        expected = maps[n, c] * (1 + scale[n, c]) + shift[n, c]
        torch.testing.assert_close(layer(maps, prompts)[n, c], expected)


def test_prompts_of_another_dtype_are_read_in_that_of_the_head() -> None:
    """The language model may predict in bfloat16 beside a mask model in float32."""
    layer = PromptModulation(prompt_size=3, channels=2)
    maps, prompts = torch.randn(1, 2, 5, 5), torch.randn(1, 3, dtype=torch.bfloat16)
    torch.nn.init.normal_(layer.scale_and_shift.weight)
    assert torch.equal(layer(maps, prompts), layer(maps, prompts.float()))


@pytest.mark.parametrize(("context", "reach"), [(4, 32), (32, 128)])
def test_context_widens_what_a_map_of_the_stem_sees(context: int, reach: int) -> None:
    """``reach``: about the side in px of what one cell of stride 4 sees, by its gradient."""
    head = HighResolutionHead(4, 3, stride=2, width=2, context=context)
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
    one, two, other = (HighResolutionHead(4, 3, seed=seed) for seed in (0, 0, 1))
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
