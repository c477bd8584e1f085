"""Mask losses: sigmoid cross-entropy and Dice, on whole masks or on uncertain points.

Beside them two for thin structures: soft clDice (Shit et al., 2021, by MONAI) and skeleton recall
(Kirchhoff et al., 2024, Skeleton Recall Loss for Connectivity Conserving and Resource Efficient
Segmentation of Thin Tubular Structures), whose skeletons the data workers make.

Source: bytedance/Sa2VA (mmdet's CrossEntropyLoss(use_sigmoid) x 2.0 and naive DiceLoss x 0.5);
point sampling is PointRend's, as in Mask2Former: 12,544 points, oversampled 3 times, 75 % of them
the most uncertain.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from projects.sa2va.errors import ConfigError, DataError

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
        grid: side in cells of the grid of ``area`` and ``nearest``, to which logits go by bilinear
            interpolation; None: the logits' own.
        cldice_weight: weight of soft clDice; 0 leaves it out.
        cldice_iterations: erosions of its soft skeleton: at least the radius of the widest vessel
            in px, where logits and labels meet.
        skeleton_recall_weight: weight of the skeleton recall loss; 0 leaves it out. It needs
            ``skeletons=True`` of the training data set.
        num_points: 0 for the full mask, else the number of sampled points.
        oversample_ratio: candidates drawn per point.
        importance_ratio: share of the points taken where the logit is nearest to 0.
        reference_weighting: weigh objects as the reference does, and not equally: each sample has
            five slots, in which its objects repeat in turn (one fills all five, of two the first
            has three); of more than five objects a random five count, drawn from torch's global
            generator. Sampled points are drawn for each slot, and the Dice over them is divided
            by the number of slots + 1e-4. Objects are weighed, never decoded again. The model
            sets it from ``processor.reference_numerics``.

    Attributes:
        names: of the losses that :meth:`forward` gives.
    """

    def __init__(
        self,
        ce_weight: float = 2.0,
        dice_weight: float = 0.5,
        supervision: Literal["upsample", "area", "nearest"] = "upsample",
        grid: int | None = None,
        cldice_weight: float = 0.0,
        cldice_iterations: int = 10,
        skeleton_recall_weight: float = 0.0,
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
        if grid is not None and (supervision == "upsample" or grid < 1):
            raise ConfigError(
                found=f"model.mask_loss.grid={grid!r} and supervision={supervision!r}",
                expected="a number of cells for area or nearest; upsample meets at the labels' own "
                "resolution",
                fix="remove model.mask_loss.grid, or set supervision='area' or 'nearest'",
            )
        self.cldice_weight, self.skeleton_recall_weight = cldice_weight, skeleton_recall_weight
        self._check_thin(supervision, num_points, cldice_iterations)
        self.supervision, self.grid = supervision, grid
        self.num_points = num_points
        self.oversample_ratio, self.importance_ratio = oversample_ratio, importance_ratio
        self.reference_weighting = reference_weighting
        # Takes 3 s, which tools without a model need not wait.
        from monai.losses import DiceLoss, SoftclDiceLoss

        self.dice = DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0, reduction="none")
        self.cldice = SoftclDiceLoss(cldice_iterations, sigmoid=True, reduction="none")
        optional = {"loss_cldice": cldice_weight, "loss_skeleton": skeleton_recall_weight}
        self._weights = {"loss_mask": ce_weight, "loss_dice": dice_weight}
        self._weights |= {name: weight for name, weight in optional.items() if weight}
        self.names = list(self._weights)

    def _check_thin(self, supervision: str, num_points: int, iterations: int) -> None:
        """Raises ConfigError for settings of clDice and skeleton recall that cannot be."""
        weights = {
            "cldice_weight": self.cldice_weight,
            "skeleton_recall_weight": self.skeleton_recall_weight,
        }
        wrong = [f"{name}={w!r}" for name, w in weights.items() if w < 0]
        if wrong or iterations < 1:
            raise ConfigError(
                found=f"model.mask_loss {', '.join(wrong) or f'cldice_iterations={iterations}'}",
                expected="weights of 0 or more, and at least one iteration",
                fix="correct these keys of model.mask_loss",
            )
        used = [name for name, w in weights.items() if w]
        if used and num_points:
            raise ConfigError(
                found=f"model.mask_loss.{used[0]} and num_points={num_points}",
                expected="whole masks: scattered points have no skeleton",
                fix="set model.mask_loss.num_points=0",
            )
        if self.skeleton_recall_weight and supervision != "upsample":
            raise ConfigError(
                found=f"model.mask_loss.skeleton_recall_weight and supervision={supervision!r}",
                expected="supervision='upsample': skeletons are drawn at the labels' resolution",
                fix="set model.mask_loss.supervision='upsample'",
            )

    def forward(
        self,
        logits: Tensor,
        labels: list[Tensor],
        points: list[Tensor] | None = None,
        skeletons: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Compares N logit maps with their labels, sample by sample, so sizes may differ.

        Args:
            logits: float [N, h, w].
            labels: per sample uint8 or float [K, H, W] in [0, 1]; the K of all samples sum to N.
            points: per sample float [S, P, 2] (x, y in [0, 1]) in place of sampled points; S is K,
                or 5 (slots) under ``reference_weighting``.
            skeletons: per sample uint8 [K, H, W] (``datasets/skeletons.py``).

        Returns:
            ``loss_mask`` and ``loss_dice``, and ``loss_cldice`` and ``loss_skeleton`` where they
            have a weight: weighted means over the N masks.

        Raises:
            DataError: skeleton recall without skeletons, or skeletons that nothing reads.
        """
        if sum(len(x) for x in labels) != len(logits):
            raise ValueError(f"{len(logits)} logit maps, {sum(map(len, labels))} labels")
        if (skeletons is None) != (self.skeleton_recall_weight == 0):
            raise skeletons_amiss(skeletons is not None)
        if not self.reference_weighting and not self.num_points:
            # Objects count alike, whose they are does not matter: one pass for many.
            skeletons = None if skeletons is None else _joined(skeletons)
            labels = _joined(labels)
        sums: dict[str, list[Tensor]] = {name: [] for name in self.names}
        start = total = 0
        for index, label in enumerate(labels):
            if len(label) == 0:
                continue
            own = logits[start : start + len(label)].float()
            start += len(label)
            skeleton = None if skeletons is None else skeletons[index]
            own, target = self._meet(own, label.float())
            slots = self._slots(len(label)) if self.reference_weighting else None
            if self.num_points:
                if slots is not None:
                    own, target = own[slots], target[slots]
                where = points[index] if points is not None else self._sample(own)
                own, target = _at_points(own, where), _at_points(target, where)
                slots = None
            each = self._each(own, target, skeleton)
            for name, values in each.items():
                # An object that fills several slots is computed once.
                sums[name].append((values if slots is None else values[slots]).sum())
            total += len(own) if slots is None else len(slots)
        dice_total = total + 1e-4 if self.reference_weighting and self.num_points else total
        return {
            name: self._weights[name]
            * torch.stack(parts).sum()
            / (dice_total if name == "loss_dice" else total)
            for name, parts in sums.items()
        }

    def _each(self, own: Tensor, target: Tensor, skeleton: Tensor | None) -> dict[str, Tensor]:
        """Every loss of K maps, [K] each; ``own`` and ``target`` [K, H, W], or [K, P] points."""
        flat, flat_target = own.flatten(1), target.flatten(1)
        each = {
            "loss_mask": F.binary_cross_entropy_with_logits(
                flat, flat_target, reduction="none"
            ).mean(dim=1),
            "loss_dice": self.dice(flat.unsqueeze(1), flat_target.unsqueeze(1)).flatten(),
        }
        if self.cldice_weight:
            each["loss_cldice"] = self.cldice(own.unsqueeze(1), target.unsqueeze(1)).flatten()
        if skeleton is not None:
            each["loss_skeleton"] = 1 - soft_recall(own.sigmoid(), skeleton)
        return each

    @staticmethod
    def _slots(count: int) -> Tensor:
        """Which of ``count`` objects stand in the reference's slots, int64 [5]."""
        if count > _REFERENCE_SLOTS:
            return torch.randperm(count)[:_REFERENCE_SLOTS]
        return torch.arange(_REFERENCE_SLOTS) % count

    def _meet(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.supervision == "upsample":
            size = labels.shape[-2:]
            return F.interpolate(logits[None], size, mode="bilinear")[0], labels
        grid = logits.shape[-2:]
        if self.grid is not None:
            grid = torch.Size((self.grid, self.grid))
            logits = F.interpolate(logits[None], grid, mode="bilinear")[0]
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


def _joined(maps: list[Tensor]) -> list[Tensor]:
    """Neighbours of one size [H, W] as one tensor, in the same order."""
    groups = itertools.groupby(maps, lambda own: own.shape[-2:])
    return [torch.cat(list(own)) for _, own in groups]


def soft_recall(probabilities: Tensor, skeletons: Tensor) -> Tensor:
    """Share of each skeleton that is found, with smoothing 1 (so an empty one is found).

    Args:
        probabilities: float [K, H, W].
        skeletons: [K, H, W], 1 where the skeleton is.

    Returns:
        float [K] in [0, 1].
    """
    found = (probabilities * skeletons).flatten(1).sum(dim=1)
    return (found + 1) / (skeletons.flatten(1).sum(dim=1) + 1)


def skeletons_amiss(given: bool) -> DataError:
    """The error of a data set and a loss that do not agree about skeletons."""
    if given:
        return DataError(
            found="skeletons in the training items and model.mask_loss.skeleton_recall_weight=0",
            expected="skeletons only where a loss reads them: they cost time",
            fix="set train_dataloader.dataset.skeletons=False, or give the loss a weight",
        )
    return DataError(
        found="model.mask_loss.skeleton_recall_weight and training items without skeletons",
        expected="skeletons made in the data workers",
        fix="set train_dataloader.dataset.skeletons=True",
    )


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
