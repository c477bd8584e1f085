"""Soft clDice and skeleton recall beside cross-entropy and Dice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.morphology import skeletonize

from projects.sa2va.datasets.skeletons import thick_skeletons
from projects.sa2va.errors import ConfigError, DataError
from projects.sa2va.models import MaskLoss
from projects.sa2va.models.losses import soft_recall

BOTH = dict(cldice_weight=0.5, skeleton_recall_weight=2.0)


def vessel(gap: int = 0) -> torch.Tensor:
    """A vessel of 5 px across 48 px, uint8 [1, 48, 48], with a gap of so many px."""
    mask = torch.zeros(1, 48, 48, dtype=torch.uint8)
    mask[:, 20:25, 4:44] = 1
    mask[:, :, 24 : 24 + gap] = 0
    return mask


def certain(mask: torch.Tensor) -> torch.Tensor:
    return (mask.float() * 2 - 1) * 20


def losses(logits: torch.Tensor, label: torch.Tensor, **settings: float) -> dict[str, float]:
    skeletons = [torch.from_numpy(thick_skeletons(label.numpy()))]
    given = {"skeletons": skeletons} if settings.get("skeleton_recall_weight") else {}
    return {k: float(v) for k, v in MaskLoss(**settings)(logits, [label], **given).items()}


def test_the_common_terms_stay_as_they_are() -> None:
    logits = torch.randn(1, 12, 12)
    plain, more = losses(logits, vessel()), losses(logits, vessel(), **BOTH)
    assert plain.keys() == {"loss_mask", "loss_dice"}
    assert more.keys() == plain.keys() | {"loss_cldice", "loss_skeleton"}
    assert {key: more[key] for key in plain} == plain


def test_a_perfect_mask_costs_nothing_and_an_empty_one_all() -> None:
    right, wrong = (
        losses(certain(vessel()), vessel(), **BOTH),
        losses(certain(vessel() * 0), vessel(), **BOTH),
    )
    assert right["loss_cldice"] < 1e-3 and right["loss_skeleton"] < 1e-6
    assert wrong["loss_cldice"] > 0.4 and wrong["loss_skeleton"] > 1.9


def test_a_gap_costs_more_on_the_skeleton_than_as_much_missing_at_the_rim() -> None:
    gap, rim = vessel(gap=4), vessel()
    rim[:, 24, 4:24] = 0  # 20 px, as the gap
    assert int(gap.sum()) == int(rim.sum())
    broken, thinner = (losses(certain(m), vessel(), **BOTH) for m in (gap, rim))
    assert broken["loss_dice"] == pytest.approx(thinner["loss_dice"], rel=1e-4)
    assert broken["loss_cldice"] > thinner["loss_cldice"] + 1e-3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 3))
def test_soft_recall_agrees_with_numpy(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.random((count, 9, 7), dtype=np.float32)
    skeleton = (rng.random(p.shape) < 0.2).astype(np.uint8)
    got = soft_recall(torch.from_numpy(p), torch.from_numpy(skeleton)).numpy()
    for row in range(count):
        found = (p[row][skeleton[row] == 1].astype(np.float64).sum() + 1) / (
            skeleton[row].sum() + 1
        )
        assert got[row] == pytest.approx(found, rel=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_thick_skeletons_lie_in_the_mask_around_its_skeleton(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((2, 40, 50), np.uint8)
    for _ in range(3):
        y, x = rng.integers(0, 30, 2)
        mask[0, y : y + rng.integers(2, 10), x : x + rng.integers(5, 20)] = 1
    thick = thick_skeletons(mask)
    assert thick.dtype == np.uint8 and not thick[1].any()
    assert not (thick[0] > mask[0]).any()
    assert not (skeletonize(np.pad(mask[0], 1))[1:-1, 1:-1] & (thick[0] == 0)).any()


def test_skeletons_and_their_loss_come_together() -> None:
    label = vessel()
    with pytest.raises(DataError, match=r"(?s)without skeletons.*dataset\.skeletons=True"):
        MaskLoss(skeleton_recall_weight=1.0)(torch.zeros(1, 12, 12), [label])
    with pytest.raises(DataError, match=r"(?s)skeletons in the.*dataset\.skeletons=False"):
        MaskLoss()(torch.zeros(1, 12, 12), [label], skeletons=[label])


@pytest.mark.parametrize(
    "wrong",
    [
        dict(cldice_weight=-1.0),
        dict(cldice_weight=1.0, cldice_iterations=0),
        dict(cldice_weight=1.0, num_points=10),
        dict(skeleton_recall_weight=1.0, supervision="area"),
        dict(grid=32),
        dict(grid=0, supervision="area"),
    ],
)
def test_wrong_settings(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=r"model\.mask_loss"):
        MaskLoss(**wrong)


def test_a_grid_of_its_own() -> None:
    """Labels shrunk to the grid, as a label file of that resolution would be."""
    label = torch.zeros(1, 16, 16)
    label[:, 4:8, 2:14] = 1
    logits = torch.randn(1, 4, 4)
    for supervision, small in (("nearest", label[:, ::2, ::2]), ("area", label[:, ::2, ::2])):
        own = MaskLoss(supervision=supervision, grid=8)(logits, [label])
        met = MaskLoss()(logits, [small])
        assert own == {key: pytest.approx(value) for key, value in met.items()}
