"""Mask losses: sigmoid cross-entropy and Dice, on whole masks or on uncertain points.

Source: bytedance/Sa2VA (mmdet's CrossEntropyLoss(use_sigmoid) x 2.0 and naive DiceLoss x 0.5);
point sampling is PointRend's, as in Mask2Former: 12,544 points, oversampled 3 times, 75 % of them
the most uncertain.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from projects.sa2va.errors import ConfigError

# The reference brings every sample to so many objects (``fix_number`` in its models/sa2va.py).
_REFERENCE_SLOTS = 5


@MODELS.register_module()
class MaskLoss(nn.Module):
    """Weighted sum of sigmoid cross-entropy and Dice.

    Args:
        ce_weight: weight of the mean sigmoid cross-entropy.
        dice_weight: weight of the Dice loss (squared terms off, smoothing 1, as the reference).
        supervision: on which grid logits and labels meet. ``upsample``: logits go up to the
            label's resolution (keeps thin vessels); ``area``: labels are area-averaged down to the
            logits' grid, as soft labels; ``nearest``: labels are sampled down by nearest neighbour,
            as the reference does (erases thin vessels; for parity only).
        num_points: 0 for the full mask, else the number of sampled points.
        oversample_ratio: candidates drawn per point.
        importance_ratio: share of the points taken where the logit is nearest to 0.
        reference_weighting: weigh objects as the reference does, and not equally: each sample has
            five slots, in which its objects repeat in turn (one fills all five, of two the first
            has three); of more than five objects a random five count, drawn from torch's global
            generator. Sampled points are drawn for each slot, and the Dice over them is divided
            by the number of slots + 1e-4. Objects are weighed, never decoded again. The model
            sets it from ``processor.reference_numerics``.
    """

    def __init__(
        self,
        ce_weight: float = 2.0,
        dice_weight: float = 0.5,
        supervision: Literal["upsample", "area", "nearest"] = "upsample",
        num_points: int = 0,
        oversample_ratio: float = 3.0,
        importance_ratio: float = 0.75,
        reference_weighting: bool = False,
    ) -> None:
        super().__init__()
        if supervision not in ("upsample", "area", "nearest"):
            raise ConfigError(
                found=f"model.mask_loss.supervision={supervision!r}",
                expected="upsample, area or nearest",
                fix="correct model.mask_loss.supervision",
            )
        if num_points < 0 or oversample_ratio < 1 or not 0 <= importance_ratio <= 1:
            raise ConfigError(
                found=f"model.mask_loss num_points={num_points}, "
                f"oversample_ratio={oversample_ratio}, importance_ratio={importance_ratio}",
                expected="num_points >= 0, oversample_ratio >= 1, importance_ratio in [0, 1]",
                fix="correct these keys of model.mask_loss",
            )
        self.ce_weight, self.dice_weight = ce_weight, dice_weight
        self.supervision = supervision
        self.num_points = num_points
        self.oversample_ratio, self.importance_ratio = oversample_ratio, importance_ratio
        self.reference_weighting = reference_weighting
        from monai.losses import DiceLoss  # takes 3 s, which tools without a model need not wait

        self.dice = DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0, reduction="none")

    def forward(
        self, logits: Tensor, labels: list[Tensor], points: list[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Compares N logit maps with their labels, sample by sample, so sizes may differ.

        Args:
            logits: float [N, h, w].
            labels: per sample uint8 or float [K, H, W] in [0, 1]; the K of all samples sum to N.
            points: per sample float [S, P, 2] (x, y in [0, 1]) in place of sampled points; S is K,
                or 5 (slots) under ``reference_weighting``.

        Returns:
            ``loss_mask`` and ``loss_dice``, weighted means over the N masks.
        """
        if sum(len(x) for x in labels) != len(logits):
            raise ValueError(f"{len(logits)} logit maps, {sum(map(len, labels))} labels")
        ce, dice = [], []
        start = total = 0
        for index, label in enumerate(labels):
            if len(label) == 0:
                continue
            own = logits[start : start + len(label)].float()
            start += len(label)
            own, target = self._meet(own, label.float())
            slots = self._slots(len(label)) if self.reference_weighting else None
            if self.num_points:
                if slots is not None:
                    own, target = own[slots], target[slots]
                where = points[index] if points is not None else self._sample(own)
                own, target = _at_points(own, where), _at_points(target, where)
                slots = None
            own, target = own.flatten(1), target.flatten(1)
            each_ce = F.binary_cross_entropy_with_logits(own, target, reduction="none").mean(dim=1)
            each_dice = self.dice(own.unsqueeze(1), target.unsqueeze(1)).flatten()
            if slots is not None:
                # An object that fills several slots is computed once.
                each_ce, each_dice = each_ce[slots], each_dice[slots]
            ce.append(each_ce.sum())
            dice.append(each_dice.sum())
            total += len(each_ce)
        dice_total = total + 1e-4 if self.reference_weighting and self.num_points else total
        return {
            "loss_mask": self.ce_weight * torch.stack(ce).sum() / total,
            "loss_dice": self.dice_weight * torch.stack(dice).sum() / dice_total,
        }

    @staticmethod
    def _slots(count: int) -> Tensor:
        """Which of ``count`` objects stand in the reference's slots, int64 [5]."""
        if count > _REFERENCE_SLOTS:
            return torch.randperm(count)[:_REFERENCE_SLOTS]
        return torch.arange(_REFERENCE_SLOTS) % count

    def _meet(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        grid = logits.shape[-2:]
        if self.supervision == "upsample":
            size = labels.shape[-2:]
            return F.interpolate(logits[None], size, mode="bilinear")[0], labels
        if self.supervision == "area":
            return logits, F.interpolate(labels[None], grid, mode="area")[0]
        return logits, F.interpolate(labels[None], grid, mode="nearest")[0]

    @torch.no_grad()
    def _sample(self, logits: Tensor) -> Tensor:
        """Points [K, P, 2]: the most uncertain of many, and the rest uniform (PointRend)."""
        k, device = len(logits), logits.device
        candidates = torch.rand(k, int(self.num_points * self.oversample_ratio), 2, device=device)
        uncertainty = -_at_points(logits, candidates).abs()
        n_uncertain = int(self.importance_ratio * self.num_points)
        top = uncertainty.topk(n_uncertain, dim=1).indices
        chosen = candidates.gather(1, top.unsqueeze(-1).expand(-1, -1, 2))
        uniform = torch.rand(k, self.num_points - n_uncertain, 2, device=device)
        return torch.cat([chosen, uniform], dim=1)


def build_mask_loss(config: dict | None, reference_weighting: bool) -> nn.Module:
    """Builds the mask loss of a config; there is one switch for the weighing, the processor's.

    Args:
        config: config of the mask loss, or None for :class:`MaskLoss` as it is.
        reference_weighting: ``processor.reference_numerics``.

    Raises:
        ConfigError: the config itself says otherwise.
    """
    config = config or {"type": "MaskLoss"}
    own = config.get("reference_weighting", reference_weighting)
    if own != reference_weighting:
        raise ConfigError(
            found=f"model.mask_loss.reference_weighting={own!r} but processor.reference_numerics="
            f"{reference_weighting!r}",
            expected="one value: the processor's switch sets that of the mask loss",
            fix="set processor.reference_numerics, and remove model.mask_loss.reference_weighting",
        )
    return MODELS.build({**config, "reference_weighting": reference_weighting})


def _at_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values [K, P] of ``maps`` [K, H, W] at ``points`` [K, P, 2] (x, y in [0, 1])."""
    grid = 2 * points.unsqueeze(2) - 1
    return F.grid_sample(maps.unsqueeze(1), grid, align_corners=False)[:, 0, :, 0]
