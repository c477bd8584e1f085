"""Convolutions laid out for a card give the same values."""

from __future__ import annotations

import torch

from projects.sa2va.models.prediction import channels_last

from .conftest import build


def test_same_features_in_another_layout() -> None:
    model = build()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model.grounding.encode(pixels)
        assert channels_last(model.grounding) > 5
        after = model.grounding.encode(pixels)
    weight = model.grounding.model.vision_encoder.backbone.patch_embed.projection.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    for name in ("stride4", "stride8", "stride16"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=0, atol=1e-5)
