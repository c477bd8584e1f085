"""Baselines small enough to train in seconds, and an experiment of the shipped configs' parts."""

from __future__ import annotations

import pprint
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from projects.sa2va.baselines import SegmentationBaseline
from projects.sa2va.datasets.synthetic.render import render
from projects.sa2va.processing import Sa2VAProcessor
from tests.conftest import ROOT

PROCESSOR: dict[str, Any] = dict(tokenizer=dict(type="byte_level"), image_only=True, image_size=64)
UNET: dict[str, Any] = dict(type="BasicUNet", features=[8, 8, 16, 16, 16, 8])
RESIDUAL: dict[str, Any] = dict(type="UNet", channels=[8, 16, 32], strides=[1, 2], num_res_units=1)
DYNUNET: dict[str, Any] = dict(
    type="DynUNet",
    kernel_size=[3, 3, 3, 3],
    strides=[1, 2, 2, 2],
    upsample_kernel_size=[2, 2, 2],
    filters=[4, 8, 16, 16],
    deep_supervision=True,
    deep_supr_num=2,
)
PHRASE = "blood vessel"


def build(**changes: Any) -> SegmentationBaseline:
    """A tiny U-Net of one class; ``changes`` replace its arguments."""
    return SegmentationBaseline(
        **{
            "processor": PROCESSOR,
            "classes": [PHRASE],
            "network": UNET,
            "loss": dict(type="DiceCELoss"),
            **changes,
        }
    )


def frames(count: int = 4, size: int = 64) -> tuple[list[np.ndarray], list[Tensor]]:
    """Synthetic angiograms, uint8 RGB, and their masks, uint8 [1, H, W]."""
    drawn = [render(0, size, patient=patient, frame=1) for patient in range(count)]
    images = [np.repeat(image[:, :, None], 3, axis=2) for image, _, _ in drawn]
    return images, [torch.from_numpy(mask)[None] for _, mask, _ in drawn]


def inputs_of(images: Sequence[np.ndarray], phrases: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The model's part of a batch."""
    processor = Sa2VAProcessor(**PROCESSOR)
    return {
        "grounding_pixels": torch.stack([processor.grounding_pixels(i) for i in images]),
        "phrases": [list(own) for own in phrases],
        "sizes": [image.shape[:2] for image in images],
    }


def write_config(folder: Path, base: str, data: Path, **keys: Any) -> Path:
    """A config over a shipped one, on frames that are rendered already."""
    shipped = ROOT / "projects/sa2va/configs/baselines" / f"{base}.py"
    keys = {"_base_": [str(shipped)], "data_root": str(data), **keys}
    path = folder / f"{base}_tiny.py"
    path.write_text("".join(f"{key} = {pprint.pformat(value)}\n" for key, value in keys.items()))
    return path


@pytest.fixture
def unet_config(rendered: Path, tmp_path: Path) -> Path:
    """Four iterations of a tiny U-Net on the tiny experiment's frames."""
    loader = dict(num_workers=0, persistent_workers=False)
    return write_config(
        tmp_path,
        "unet_synthetic",
        rendered / "data",
        processor=dict(image_size=64),
        model=dict(network={"_delete_": True, **UNET, "dropout": 0.1}),
        train_dataloader=dict(batch_size=2, **loader),
        val_dataloader=dict(batch_size=2, **loader),
        test_dataloader=dict(batch_size=2, num_workers=0),
        param_scheduler=[
            dict(type="LinearLR", start_factor=0.5, by_epoch=False, begin=0, end=2),
            dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=2, end=4),
        ],
        train_cfg=dict(max_iters=4, val_interval=2),
        default_hooks=dict(logger=dict(interval=1), checkpoint=dict(interval=2)),
        log_processor=dict(window_size=1),
    )
