"""A model in units predicts bit for bit what it predicts in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from projects.sa2va.models import Prediction, Sa2VAModel
from projects.sa2va.placement import Placement, parse_precision, prepare_for_prediction
from projects.sa2va.placement.dispatch import UnitHook
from projects.sa2va.placement.units import has_tied_tables, units_of
from tests.models.conftest import build, picture, predict_inputs
from tests.models.test_merge import trained
from tests.models.test_sa2va_predict import speak

BFLOAT16 = dict(autocast="bfloat16", mllm=dict(dtype="bfloat16"))
NF4 = dict(autocast="bfloat16", mllm=dict(dtype="bfloat16", quantization="nf4"))
HEAD = dict(high_resolution=dict(stride=1, width=2))
TIED = dict(mllm=dict(config=dict(tie_word_embeddings=True)))
CPU = Placement("cpu", devices=("cpu",))
SIZES = [(64, 64), (50, 90), (33, 40)]
PHRASES = [["blood vessel", "wire"], [], ["a long phrase about a catheter"]]


def predictions(model: Sa2VAModel) -> list[Prediction]:
    """Several phrases of images of several sizes, in several passes."""
    model.max_phrases_per_pass = 2
    if model.answer_mode == "generate":
        speak(model, model.processor.answer_ids()[:-1].tolist())
    images = [picture(i, size) for i, size in enumerate(SIZES)]
    return model(inputs=predict_inputs(model.processor, images, PHRASES), mode="predict")


def sharded(model: Sa2VAModel, waiting: str | None) -> Placement:
    """All units hooked; those that may wait do so on ``waiting``."""
    units = units_of(model)
    return Placement(
        "sharded",
        devices=("cpu",),
        units={unit.name: "cpu" for unit in units},
        waiting={u.name: waiting for u in units if u.may_wait} if waiting else {},
    )


def same(one: Sequence[Prediction], other: Sequence[Prediction]) -> bool:
    return all(
        torch.equal(a.probabilities, b.probabilities)
        and (a.answers, a.seg_emitted) == (b.answers, b.seg_emitted)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(
    ("recipe", "merge", "precision", "mode"),
    [
        (BFLOAT16, False, "config", "forced"),
        (BFLOAT16 | HEAD, False, "config", "forced"),
        (BFLOAT16, True, "config", "generate"),
        (TIED, False, "config", "generate"),
        (NF4, False, "config", "generate"),
        (BFLOAT16, False, "llm=int8", "generate"),
    ],
    ids=["beside", "head", "merged", "tied", "nf4", "int8"],
)
def test_bit_for_bit(recipe: dict[str, Any], merge: bool, precision: str, mode: str) -> None:
    if "nf4" in str(recipe):
        pytest.importorskip("bitsandbytes")
    if "int8" in precision:
        pytest.importorskip("torchao")
    found = {}
    for waiting in ("plain", None, "host", "disk"):
        model = trained(answer_mode=mode, max_new_tokens=6, **recipe)
        place = CPU if waiting == "plain" else sharded(model, waiting)
        prepare_for_prediction(
            model, merge_lora=merge, precision=parse_precision(precision), placement=place
        )
        hooks = [m._hf_hook for m in model.modules() if hasattr(m, "_hf_hook")]
        assert sum(hook.waits for hook in hooks) == (
            0 if waiting in ("plain", None) else len(hooks) - 1
        )
        assert bool(hooks) == (waiting != "plain")
        found[waiting] = predictions(model)
        if waiting == "disk":
            assert same(predictions(model), found[waiting])  # a second time from the same files
    plain = found.pop("plain")
    assert plain[0].seg_emitted == [True, True]
    assert plain[0].probabilities.std() > 0
    for waiting, other in found.items():
        assert same(plain, other), waiting


@pytest.mark.parametrize("tied", [False, True])
def test_every_weight_is_in_one_unit(tied: bool) -> None:
    model = build(mllm=dict(config=dict(tie_word_embeddings=tied)), **HEAD)
    for _ in range(2):
        assert has_tied_tables(model) == tied
        in_units = [id(tensor) for unit in units_of(model) for tensor in unit.tensors()]
        assert len(in_units) == len(set(in_units))
        assert set(in_units) == {id(t) for t in (*model.parameters(), *model.buffers())}
        model.merge_lora()


def test_a_waiting_unit_holds_nothing_of_its_device_between_calls() -> None:
    model = trained()
    place = sharded(model, "host")
    prepare_for_prediction(
        model, merge_lora=False, precision=parse_precision(None), placement=place
    )
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    layer = units_of(model)[-4].modules[0]
    assert type(layer).__name__ == "Qwen2RMSNorm"
    layer._hf_hook.device = torch.device("meta")
    assert layer(torch.ones(1, 1, 32)).is_meta
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before


def test_a_failed_call_leaves_no_fetched_weights_for_the_next() -> None:
    linear = torch.nn.Linear(2, 2)
    hook = UnitHook("meta", waits=True)
    own = linear.weight
    hook.pre_forward(linear, torch.ones(1, 2))
    assert linear.weight is not own
    hook.pre_forward(linear, torch.ones(1, 2))  # the call between the two failed
    hook.post_forward(linear, None)
    assert linear.weight is own
