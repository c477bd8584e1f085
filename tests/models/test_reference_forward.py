"""One forced prediction against every golden tensor of the reference (F4_forward, tiny weights)."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from projects.sa2va.datasets.image_io import read_image
from projects.sa2va.models import Sa2VAModel

from .conftest import PHRASE, predict_inputs
from .reference_model import IMAGES, build
from .reference_trace import Trace

# Largest deviations; what is not named here is held to the last one.
TOLERANCE = {
    "logits_tail": 1e-4,
    "multimask_logits": 1e-4,
    "highres_1024_slice": 1e-4,
    "final_logits": 1e-4,
    "iou_scores": 1e-5,
    "dense_prompt_slice": 0.0,
    "dense_pe_slice": 1e-6,
}
STATES = 2e-5


@pytest.fixture(scope="module")
def reference(shared_dir: Path) -> Path:
    return shared_dir / "reference"


@pytest.fixture(scope="module")
def model(reference: Path) -> Sa2VAModel:
    return build(reference)


def picture(reference: Path, name: str) -> np.ndarray:
    return read_image(reference / "F2_preprocess" / f"{name}.png")


@pytest.fixture(scope="module")
def alone(model: Sa2VAModel, reference: Path) -> Callable[[str], Trace]:
    """Each image predicted by itself, once."""
    return functools.cache(lambda name: Trace(model, picture(reference, name)))


def spread(maps: Tensor, *counts: int) -> Tensor:
    """[C, H, W] at so many places along each axis, as the golden slices are taken."""
    c, h, w = (size // count for size, count in zip(maps.shape, counts, strict=True))
    return maps[::c, ::h, ::w]


def golden_parts(model: Sa2VAModel, trace: Trace, meta: dict) -> dict[str, Tensor]:
    """The tensors of F4_forward/<image>.safetensors, cut out of our own."""
    tail, seg = meta["tail_start"], meta["seg_position"]
    hidden = trace["last_hidden"][0]
    layers = [trace[f"hidden{number}"][0, seg] for number in range(3)]
    return {
        "input_ids": trace["input_ids"][0],
        "vit_last_hidden_slice": trace["vit_last_hidden"][:, ::64],
        "vit_embeds": trace["vit_embeds"][:, :: meta["vit_embeds_token_stride"]],
        "last_hidden_img_slice": hidden[4:tail:37],
        "last_hidden_tail": hidden[tail:],
        "hidden_all_layers_at_seg": torch.stack([*layers, hidden[seg]]),
        "logits_tail": model.mllm.logits(hidden[tail:]).detach(),
        "seg_hidden": trace["seg_hidden"],
        "seg_embed": trace["seg_embed"],
        **{f"trunk{i}_slice": spread(trace[f"trunk{i}"][0], 8, 8, 8) for i in range(4)},
        "feat_s0_slice": spread(trace["feat_s0"][0], 16, 16, 16),
        "feat_s1_slice": spread(trace["feat_s1"][0], 16, 16, 16),
        "image_embed_slice": spread(trace["fpn2"][0], 16, 16, 16),
        "sparse_prompt": trace["sparse_prompt"][0],
        "dense_prompt_slice": trace["dense_prompt"][0, :, 0, 0],
        "dense_pe_slice": trace["dense_pe"][0, ::16, ::8, ::8],
        "multimask_logits": trace["multimask_logits"][0],
        "iou_scores": trace["iou_scores"][0],
        "object_score_logits": trace["object_score_logits"][0],
        "mask_tokens_out": trace["mask_tokens_out"][0],
        "highres_1024_slice": trace.highres[0][::64, ::64],
        "final_logits": trace.final[0][None],
        "final_mask_packed": packed(trace.prediction.probabilities),
    }


def packed(probabilities: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits((probabilities > 0.5).numpy().reshape(-1)))


def check_forward(reference: Path, model: Sa2VAModel, name: str, trace: Trace) -> None:
    golden = load_file(reference / "F4_forward" / f"{name}.safetensors")
    meta = json.loads((reference / "F4_forward" / f"{name}.json").read_text())
    own = golden_parts(model, trace, meta)
    assert own.keys() == golden.keys()
    for key, expected in golden.items():
        if key == "input_ids":
            assert torch.equal(own[key], expected)
        elif key == "final_mask_packed":
            undecided = (golden["final_logits"].abs() < 1e-4).numpy().reshape(-1)
            bits = np.unpackbits((own[key] ^ expected).numpy())[: undecided.size]
            assert not bits[~undecided].any()
        else:
            atol = TOLERANCE.get(key, STATES)
            torch.testing.assert_close(
                own[key], expected, rtol=0, atol=atol, msg=lambda text, key=key: f"{key}: {text}"
            )
    assert int(own["iou_scores"].argmax()) == meta["best_mask_index"]
    assert trace.prediction.seg_emitted == [True]
    check_whole_tensors(trace, meta)
    before_answer = meta["prompt_len"] - meta["tail_start"] - 1
    said = own["input_ids"][meta["prompt_len"] :]
    ce = F.cross_entropy(own["logits_tail"][before_answer:-1], said)
    assert float(ce) == pytest.approx(meta["answer_ce_loss"], rel=1e-5)


def check_whole_tensors(trace: Trace, meta: dict) -> None:
    """Moments of whole tensors, of which the files hold slices."""
    whole = {
        **trace.seen,
        "image_embed": trace["fpn2"],
        "highres_1024": trace.highres[0][None, None],
        "final_logits": trace.final[0][None],
    }
    named = {k: v for k, v in meta.items() if isinstance(v, dict) and "abs_sum" in v}
    # SAM2's fourth feature level is computed by nobody here: the reference drops it, too.
    del named["fpn3"]
    for key, expected in named.items():
        tensor = whole[key].double()
        assert list(tensor.shape) == expected["shape"], key
        assert float(tensor.abs().sum()) == pytest.approx(expected["abs_sum"], rel=1e-5), key
        assert float(tensor.std()) == pytest.approx(expected["std"], rel=1e-5), key
        for moment in ("mean", "min", "max"):
            own = float(getattr(tensor, moment)())
            assert own == pytest.approx(expected[moment], abs=STATES), (key, moment)


@pytest.mark.parametrize("name", IMAGES)
def test_forced_forward_agrees(
    model: Sa2VAModel, alone: Callable, reference: Path, name: str
) -> None:
    check_forward(reference, model, name, alone(name))


def test_forced_forward_agrees_with_eager_attention(reference: Path) -> None:
    """The reference's own; sdpa is the default, and an order of magnitude faster on a CPU."""
    eager = build(reference, "eager")
    check_forward(reference, eager, "img_a", Trace(eager, picture(reference, "img_a")))


def test_batch_of_mixed_sizes_agrees_with_single_images(
    model: Sa2VAModel, alone: Callable, reference: Path
) -> None:
    images = [picture(reference, name) for name in IMAGES]
    inputs = predict_inputs(model.processor, images, [[PHRASE], ["artery", PHRASE], [PHRASE]])
    together = model(inputs=inputs, mode="predict")
    assert [tuple(p.probabilities.shape) for p in together] == [
        (1, 299, 301),
        (2, 171, 333),
        (1, 250, 163),
    ]
    for name, prediction in zip(IMAGES, together, strict=True):
        single = alone(name).prediction.probabilities[0]
        torch.testing.assert_close(prediction.probabilities[-1], single, atol=1e-4, rtol=0)
