"""The model without data is the real one: names, shapes, dtypes, what trains, what it holds."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from projects.sa2va.config import load_config
from projects.sa2va.errors import UserError
from projects.sa2va.models import part_of
from projects.sa2va.planning.model import build_without_data
from projects.sa2va.planning.nf4 import PackedLinear
from projects.sa2va.planning.plan import _count
from projects.sa2va.planning.sizes import (
    INTERNVL_IDS,
    SAM2_IDS,
    WHOLE_IDS,
    internvl_sizes,
    sam2_sizes,
)
from tests.conftest import ROOT

DEMO = ROOT / "projects/sa2va/configs/sa2va_demo.py"
FULL = ROOT / "projects/sa2va/configs/sa2va_vessel_finetune.py"


def described(model: nn.Module) -> dict:
    return {
        name: (tuple(p.shape), p.dtype, p.requires_grad) for name, p in model.named_parameters()
    }


def test_every_parameter_is_that_of_the_built_model():
    cfg = load_config(DEMO)
    planned, real = build_without_data(cfg.model), MODELS.build(cfg.model)
    assert described(planned) == described(real)
    assert all(p.is_meta for p in planned.parameters())
    counts = {}
    for name, parameter in real.named_parameters():
        total, trained = counts.get(part_of(name), (0, 0))
        more = parameter.numel() * parameter.requires_grad
        counts[part_of(name)] = (total + parameter.numel(), trained + more)
    assert _count(planned) == counts


def test_the_published_8b_has_its_published_sizes(no_network):
    """The arithmetic of the reference's recipe (its load report), LoRA of rank 64."""
    counts = _count(build_without_data(load_config(FULL).model))
    assert counts["MLLM language model"] == (6_525_621_760, 0)
    assert counts["MLLM vision encoder"] == (304_012_288, 0)
    assert counts["MLLM projector"] == (27_540_480, 27_540_480)
    assert counts["LoRA"] == (161_480_704, 161_480_704)
    # 151,674 published rows and 5 of the added tokens.
    assert counts["MLLM embeddings"] == counts["MLLM head"] == (151_679 * 3584, 0)


def test_all_known_ids_have_sizes(no_network):
    for name in (*INTERNVL_IDS, *WHOLE_IDS):
        text = internvl_sizes(name)["text_config"]
        assert text["hidden_size"] % text["num_attention_heads"] == 0
    widths = {sam2_sizes(name)["vision_config"]["backbone_channel_list"][0] for name in SAM2_IDS}
    assert widths == {768, 896, 1152}


@pytest.mark.parametrize(
    "pretrained, expected", [("OpenGVLab/InternVL3-9B", "did you mean"), ("./nowhere", "no folder")]
)
def test_an_unknown_name_says_what_to_do(pretrained, expected, no_network):
    with pytest.raises(UserError, match=expected) as error:
        internvl_sizes(pretrained)
    assert "model.mllm.pretrained" in error.value.fix


def test_a_packed_layer_holds_what_bitsandbytes_holds():
    bnb = pytest.importorskip("bitsandbytes")
    linear = nn.Linear(512, 256, bias=False).requires_grad_(False)
    packed, state = bnb.functional.quantize_4bit(
        linear.weight.data, compress_statistics=True, quant_type="nf4"
    )
    real = [packed, state.absmax, state.state2.absmax, state.code, state.state2.code]
    ours = PackedLinear(linear)
    held = [*ours.parameters(), *ours.buffers()]
    assert sum(t.nbytes for t in held) == sum(t.nbytes for t in real)
    x = torch.randn(3, 512, requires_grad=True)
    ours(x).sum().backward()
    assert x.grad.shape == x.shape
