"""Tensors meet on one device, whatever the units are spread over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from projects.sa2va.placement import (
    Placement,
    parse_precision,
    prepare,
    prepare_for_prediction,
)
from projects.sa2va.placement.units import units_of
from tests.models.test_merge import trained

from .pretend import pretended_cards
from .test_dispatch import CPU, predictions

EAGER = dict(mllm=dict(attn_implementation="eager"), grounding=dict(attn_implementation="eager"))


def spread(names: Sequence[str], cuts: Sequence[str], waiting: Sequence[str]) -> Placement:
    """Each unit of ``cuts`` is the first of another card."""
    units, card = {}, 0
    for name in names:
        card += name in cuts
        units[name] = f"xla:{card}"
    return Placement(
        "sharded",
        devices=tuple(dict.fromkeys(units.values())),
        units=units,
        waiting=dict.fromkeys(waiting, "host"),
    )


@pytest.fixture(autouse=True)
def new_parameters(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules that move get new parameters: a pretended tensor cannot be another's data."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    monkeypatch.setattr(prepare, "move_frozen_first", lambda module, device: module.to(device))
    yield
    torch.__future__.set_overwrite_module_params_on_conversion(before)


@pytest.mark.parametrize(
    ("mode", "merge", "cuts", "waiting"),
    [
        (
            "forced",
            False,
            ("projector", "embedding", "layers.0", "layers.1", "norm", "seg_projector", "sam2"),
            (),
        ),
        (
            "generate",
            False,
            ("vision.layers.0", "embedding", "layers.1", "head", "seg_projector", "sam2"),
            ("layers.1", "head"),
        ),
        ("generate", True, ("layers.1",), ("embedding", "vision.layers.0", "projector")),
    ],
)
def test_several_cards_predict_as_one(
    mode: str, merge: bool, cuts: tuple[str, ...], waiting: tuple[str, ...]
) -> None:
    plain, model = (trained(answer_mode=mode, max_new_tokens=6, **EAGER) for _ in range(2))
    place = spread([unit.name for unit in units_of(model)], cuts, waiting)
    precision = parse_precision(None)
    prepare_for_prediction(plain, merge_lora=merge, precision=precision, placement=CPU)
    expected = predictions(plain)
    model.requires_grad_(False)  # torch asks the card's library for a stream to train on
    with pretended_cards():
        prepare_for_prediction(model, merge_lora=merge, precision=precision, placement=place)
        types = {p.device.type for p in model.parameters()}
        assert types == ({"xla", "cpu"} if waiting else {"xla"})
        found = predictions(model)
    for one, other in zip(found, expected, strict=True):
        # A linear layer of a pretended tensor is computed as other operations, and rounds apart.
        torch.testing.assert_close(one.probabilities, other.probabilities, atol=1e-5, rtol=0)
        assert (one.answers, one.seg_emitted) == (other.answers, other.seg_emitted)
