"""Mask losses against plain numpy."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from projects.sa2va.errors import ConfigError
from projects.sa2va.models import MaskLoss
from projects.sa2va.models.losses import build_mask_loss

from .conftest import build

QUICK = settings(max_examples=25, deadline=None)


def numpy_losses(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Mean cross-entropy and mean Dice loss of [N, ...] logits and labels, unweighted."""
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    t = labels.astype(np.float64)
    ce = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    dice = [
        1 - (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(p, t, strict=True)
    ]
    return float(ce), float(np.mean(dice))


def on_one_grid(logits: np.ndarray, labels: np.ndarray, supervision: str) -> tuple:
    """Logits and labels [N, ., .] where they meet, without torch."""
    h, w = logits.shape[1:]
    height, width = labels.shape[1:]
    if supervision == "upsample":
        return np.stack([cv2.resize(x, (width, height)) for x in logits]), labels
    if supervision == "area":
        blocks = labels.reshape(-1, h, height // h, w, width // w)
        return logits, blocks.astype(np.float64).mean(axis=(2, 4))
    return logits, labels[:, np.arange(h) * height // h][:, :, np.arange(w) * width // w]


def draw(rng: np.random.Generator, count: int, grid: tuple, size: tuple) -> tuple:
    logits = rng.normal(scale=3, size=(count, *grid)).astype(np.float32)
    return logits, (rng.random((count, *size)) < 0.3).astype(np.uint8)


@pytest.mark.parametrize("supervision", ["upsample", "area", "nearest"])
@QUICK
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 3),
    grid=st.tuples(st.integers(2, 6), st.integers(2, 6)),
    factor=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_agrees_with_numpy(supervision: str, seed: int, count: int, grid, factor) -> None:
    size = (grid[0] * factor[0], grid[1] * factor[1])
    logits, labels = draw(np.random.default_rng(seed), count, grid, size)
    ce, dice = numpy_losses(*on_one_grid(logits, labels, supervision))
    loss = MaskLoss(ce_weight=3.0, dice_weight=0.25, supervision=supervision)
    got = loss(torch.from_numpy(logits), [torch.from_numpy(labels)])
    assert float(got["loss_mask"]) == pytest.approx(3.0 * ce, rel=1e-4, abs=1e-6)
    assert float(got["loss_dice"]) == pytest.approx(0.25 * dice, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("supervision", ["upsample", "area", "nearest"])
@QUICK
@given(
    seed=st.integers(0, 2**32 - 1),
    samples=st.lists(
        st.tuples(st.integers(0, 3), st.integers(3, 17), st.integers(3, 17)),
        min_size=1,
        max_size=4,
    ).filter(lambda samples: any(k for k, _, _ in samples)),
)
def test_mixed_sizes_are_the_weighted_mean_of_singles(supervision: str, seed, samples) -> None:
    rng = np.random.default_rng(seed)
    drawn = [draw(rng, k, (4, 5), (h, w)) for k, h, w in samples]
    logits = [torch.from_numpy(x) for x, _ in drawn]
    labels = [torch.from_numpy(y) for _, y in drawn]
    loss = MaskLoss(supervision=supervision)
    together = loss(torch.cat(logits), labels)
    singles = [(len(x), loss(x, [y])) for x, y in zip(logits, labels, strict=True) if len(x)]
    count = sum(n for n, _ in singles)
    for key, value in together.items():
        mean = sum(n * float(single[key]) for n, single in singles) / count
        assert float(value) == pytest.approx(mean, rel=1e-5, abs=1e-7)


def test_samples_without_objects_are_skipped() -> None:
    logits, labels = draw(np.random.default_rng(0), 2, (4, 4), (8, 8))
    logits, labels = torch.from_numpy(logits), torch.from_numpy(labels)
    none = torch.zeros(0, 5, 7, dtype=torch.uint8)
    loss = MaskLoss()
    plain = loss(logits, [labels])
    padded = loss(logits, [none, labels[:1], none, labels[1:], none])
    for key, value in plain.items():
        assert float(padded[key]) == pytest.approx(float(value), rel=1e-6)


def test_a_thin_vessel_survives_upsampling_and_area_only() -> None:
    label = torch.zeros(1, 16, 16)
    label[:, :, 5] = 1  # one pixel wide, between the samples of nearest neighbour
    logits = torch.full((1, 4, 4), -8.0)
    missed = {
        s: float(MaskLoss(supervision=s)(logits, [label])["loss_mask"])
        for s in ("upsample", "area", "nearest")
    }
    assert missed["nearest"] < 1e-2
    assert missed["upsample"] > 0.5 and missed["area"] > 0.5


def test_perfect_and_inverted_masks() -> None:
    label = (torch.arange(64).reshape(1, 8, 8) % 3 == 0).float()
    loss = MaskLoss(ce_weight=1.0, dice_weight=1.0)
    right, wrong = loss((label * 2 - 1) * 20, [label]), loss((1 - label * 2) * 20, [label])
    assert float(right["loss_mask"]) < 1e-6 and float(right["loss_dice"]) < 1e-6
    assert float(wrong["loss_mask"]) > 19 and float(wrong["loss_dice"]) > 0.9


def test_given_points_agree_with_numpy() -> None:
    """At pixel centres bilinear sampling is a look-up."""
    rng = np.random.default_rng(0)
    logits, labels = draw(rng, 2, (8, 8), (8, 8))
    rows, columns = rng.integers(0, 8, (2, 2, 11))
    points = torch.from_numpy(np.stack([columns + 0.5, rows + 0.5], -1) / 8).float()
    picked = [
        np.stack([m[r, c] for m, r, c in zip(maps, rows, columns, strict=True)])
        for maps in (logits, labels)
    ]
    ce, dice = numpy_losses(*picked)
    loss = MaskLoss(1.0, 1.0, num_points=11)
    got = loss(torch.from_numpy(logits), [torch.from_numpy(labels)], points=[points])
    assert float(got["loss_mask"]) == pytest.approx(ce, rel=1e-4)
    assert float(got["loss_dice"]) == pytest.approx(dice, rel=1e-4)


@pytest.mark.parametrize(
    ("importance", "low", "high"), [(0.0, 0.3, 0.5), (0.75, 0.8, 0.9), (1.0, 1.0, 1.0)]
)
def test_the_most_uncertain_points_are_chosen(importance: float, low: float, high: float) -> None:
    """40 % of the map is uncertain: with 3 candidates a point, all important points lie there."""
    logits = torch.full((2, 10, 10), 9.0)
    logits[0, :, :4], logits[1, :, 6:] = 0.0, 0.0
    torch.manual_seed(0)
    loss = MaskLoss(num_points=1000, importance_ratio=importance)
    points = loss._sample(logits)
    assert points.shape == (2, 1000, 2)
    assert float(points.min()) >= 0 and float(points.max()) <= 1
    inside = torch.stack([points[0, :, 0] < 0.45, points[1, :, 0] > 0.55]).float().mean(dim=1)
    assert all(low <= float(share) <= high for share in inside)


def test_sampled_loss_estimates_the_full_loss_and_has_gradients() -> None:
    logits, labels = draw(np.random.default_rng(1), 2, (16, 16), (16, 16))
    logits, labels = torch.from_numpy(logits).requires_grad_(), torch.from_numpy(labels)
    torch.manual_seed(0)
    uniform = MaskLoss(num_points=20000, importance_ratio=0.0)(logits, [labels])
    smooth = MaskLoss()(logits, [labels])
    # Between pixels the two are interpolated, so this is an estimate of a smoother problem.
    assert float(uniform["loss_dice"]) == pytest.approx(float(smooth["loss_dice"]), rel=0.1)
    uniform["loss_mask"].backward()
    assert float(logits.grad.abs().sum()) > 0


@QUICK
@given(seed=st.integers(0, 2**32 - 1), counts=st.lists(st.integers(0, 5), min_size=1, max_size=3))
@pytest.mark.parametrize("num_points", [0, 30])
def test_reference_weighting_is_that_of_five_copies(num_points: int, seed, counts) -> None:
    """The reference repeats the objects of a sample in turn until there are five."""
    counts = [*counts, 2]
    rng = np.random.default_rng(seed)
    drawn = [draw(rng, k, (4, 4), (8, 8)) for k in counts]
    logits = [torch.from_numpy(x) for x, _ in drawn]
    labels = [torch.from_numpy(y) for _, y in drawn]
    slots = [[i % k for i in range(5)] if k else [] for k in counts]
    points = [torch.from_numpy(rng.random((len(s), 30, 2), dtype=np.float32)) for s in slots]
    given = dict(points=points) if num_points else {}
    weighed = MaskLoss(num_points=num_points, reference_weighting=True)
    got = weighed(torch.cat(logits), labels, **given)
    copied = MaskLoss(num_points=num_points)(
        torch.cat([x[s] for x, s in zip(logits, slots, strict=True)]),
        [y[s] for y, s in zip(labels, slots, strict=True)],
        **given,
    )
    total = sum(map(len, slots))
    divided = total / (total + 1e-4) if num_points else 1.0
    assert float(got["loss_mask"]) == pytest.approx(float(copied["loss_mask"]), rel=1e-6)
    assert float(got["loss_dice"]) == pytest.approx(float(copied["loss_dice"]) * divided, rel=1e-6)


@pytest.mark.parametrize("num_points", [0, 30])
def test_reference_weighting_draws_five_of_many_objects(num_points: int) -> None:
    logits, labels = draw(np.random.default_rng(0), 8, (4, 4), (8, 8))
    logits, labels = torch.from_numpy(logits), torch.from_numpy(labels)
    points = torch.rand(5, 30, 2)
    given = dict(points=[points]) if num_points else {}
    loss = MaskLoss(num_points=num_points, reference_weighting=True)
    torch.manual_seed(3)
    seen = [float(loss(logits, [labels], **given)["loss_mask"]) for _ in range(4)]
    assert len(set(seen)) > 1
    torch.manual_seed(3)
    plain = MaskLoss(num_points=num_points)
    for value in seen:
        five = torch.randperm(8)[:5]
        expected = plain(logits[five], [labels[five]], **given)["loss_mask"]
        assert value == pytest.approx(float(expected), rel=1e-6)


def test_reference_weighting_draws_points_for_every_slot() -> None:
    logits, labels = draw(np.random.default_rng(0), 2, (4, 4), (8, 8))
    logits = torch.from_numpy(logits).requires_grad_()
    loss = MaskLoss(num_points=30, reference_weighting=True)
    drawn: list[torch.Tensor] = []
    sample = loss._sample
    loss._sample = lambda maps: drawn.append(sample(maps)) or drawn[-1]  # type: ignore[method-assign]
    sum(loss(logits, [torch.from_numpy(labels)]).values()).backward()
    (points,) = drawn
    assert points.shape == (5, 30, 2) and not torch.equal(points[0], points[2])
    assert bool((logits.grad.flatten(1).abs().sum(dim=1) > 0).all())


def test_equal_weighting_is_the_default_and_draws_nothing() -> None:
    logits, labels = draw(np.random.default_rng(0), 8, (4, 4), (8, 8))
    logits, labels = torch.from_numpy(logits), torch.from_numpy(labels)
    before = torch.get_rng_state()
    equal = MaskLoss()(logits, [labels[:1], labels[1:]])
    assert torch.equal(torch.get_rng_state(), before)
    each = [MaskLoss()(logits[i : i + 1], [labels[i : i + 1]]) for i in range(8)]
    for name, value in equal.items():
        mean = np.mean([float(one[name]) for one in each])
        assert float(value) == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("switch", [False, True])
def test_the_processor_switches_the_weighting(switch: bool) -> None:
    model = build(processor=dict(reference_numerics=switch), mask_loss=dict(type="MaskLoss"))
    assert model.mask_loss.reference_weighting is switch
    assert build_mask_loss(None, switch).reference_weighting is switch
    same = dict(type="MaskLoss", reference_weighting=switch)
    assert build_mask_loss(same, switch).reference_weighting is switch
    with pytest.raises(ConfigError, match=r"processor\.reference_numerics") as caught:
        build_mask_loss(same, not switch)
    assert f"reference_weighting={switch}" in caught.value.found
    assert "remove model.mask_loss.reference_weighting" in caught.value.fix


@pytest.mark.parametrize(
    "wrong",
    [
        dict(supervision="bilinear"),
        dict(num_points=-1),
        dict(oversample_ratio=0.5),
        dict(importance_ratio=1.5),
    ],
)
def test_wrong_settings_are_named(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        MaskLoss(**wrong)


def test_logits_and_labels_must_pair_up() -> None:
    with pytest.raises(ValueError, match="2 logit maps, 1 labels"):
        MaskLoss()(torch.zeros(2, 4, 4), [torch.zeros(1, 4, 4)])
