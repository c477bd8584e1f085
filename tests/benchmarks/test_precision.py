"""The precision benchmark: what it counts, and that it measures through the product's path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from benchmarks import precision
from projects.sa2va.evaluation.metrics import Scorer
from tests.placement.precision_models import BF16, FP32, linears, ready

pytest.importorskip("torchao")
pytest.importorskip("bitsandbytes")


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(0, 1, width=32)),
        min_size=2,
        max_size=6,
    ),
    st.floats(0.0625, 1, width=32),
)
def test_differences_are_those_of_all_frames_at_once(maps: list[np.ndarray], cut: float) -> None:
    half = len(maps) // 2
    found, expected = maps[:half], maps[half : 2 * half]
    counted = precision.Differences(cut)
    for pair in zip(found, expected, strict=True):
        counted.add(*pair)
    both = np.stack(found), np.stack(expected)
    change = np.abs(both[0].astype(np.float64) - both[1])
    result = counted.as_dict()
    assert result["max_change"] == change.max() and result["pixels"] == change.size
    assert result["mean_change"] == pytest.approx(change.mean(), abs=1e-12)
    scorer = Scorer(cut, ("dice",), 0.0)  # the evaluator's own cut
    masks = [np.stack([scorer.cut(m) for f in x for m in f]) for x in both]
    assert result["flipped_pixels"] == (masks[0] != masks[1]).sum()
    assert result["vessel_pixels"] == masks[1].sum()


def test_bytes_of_quantized_weights_with_their_scales() -> None:
    whole = ready(BF16, "bf16")
    layers = [m for m in linears(whole, "vit").values() if m.weight.requires_grad is False]
    inside = {id(m) for x in whole.prediction_parts()["vit"].layers for m in x.modules()}
    layers = [m for m in layers if id(m) in inside]
    bytes_of = precision.weight_bytes(whole)
    values = sum(m.weight.numel() for m in layers)
    rows = sum(m.out_features for m in layers)
    int8 = precision.weight_bytes(ready(BF16, "vit=int8"))
    # A float32 scale a row, and an int8 zero, which torchao keeps for symmetric weights too.
    assert 0 <= int8 - (bytes_of - values + 4 * rows) <= rows
    nf4 = precision.weight_bytes(ready(BF16, "vit=nf4"))
    blocks = values // 64  # a byte each, and a float32 for every 256 of them in each layer
    assert nf4 == bytes_of - 2 * values + values // 2 + blocks + 4 * len(layers)
    assert precision.weight_bytes(ready(FP32, "fp32")) > 1.5 * bytes_of


def test_a_precision_is_compared_with_fp32(experiment: Path, tmp_path: Path) -> None:
    results = {
        word: precision.measure(str(experiment), word, tmp_path, frames=2, device="cpu")
        for word in ("fp32", "bf16")
    }
    assert len(list(tmp_path.glob("*.npy"))) == 2
    zero, other = (results[word]["differences"] for word in ("fp32", "bf16"))
    assert zero["max_change"] == zero["flipped_pixels"] == 0
    assert 0 < other["mean_change"] < other["max_change"] < 0.5
    assert results["bf16"]["precision"] == dict(llm="bf16", vit="bf16", sam2="bf16")
    assert results["bf16"]["seconds_per_image"] > 0 and results["bf16"]["frames"] == 2
    results["nf5"] = {"failed": "found: nf5"}
    text = precision.tables(results).splitlines()
    dice = next(line for line in text if line.startswith("| vessel/dice "))
    change = results["bf16"]["metrics"]["vessel/dice"] - results["fp32"]["metrics"]["vessel/dice"]
    assert f"{change:+.5f}" in dice and "| nf5 | failed: found: nf5 |" in "\n".join(text)
    table = text[: text.index("")]
    assert len({line.count("|") for line in table}) == 1
