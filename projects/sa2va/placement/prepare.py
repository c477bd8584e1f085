"""The one order in which a loaded model becomes ready to predict."""

from __future__ import annotations

import logging

from mmengine.logging import print_log
from torch import nn

from projects.sa2va.errors import listing
from projects.sa2va.models import Sa2VAModel, SegmentationModel
from projects.sa2va.models.prediction import channels_last, move_frozen_first

from .choice import Placement
from .dispatch import dispatch
from .precision import Precision, emulates
from .units import units_of


def prepare_for_prediction(
    model: SegmentationModel, *, merge_lora: bool, precision: Precision, placement: Placement
) -> None:
    """Merges LoRA, sets the precision, rounds what autocast rounds, and puts the model in place.

    Where nothing is quantized, weights go to their device first and are merged and cast there,
    which is quick. Where something is, they wait on the host and follow layer by layer, each
    when it has its last form: a card never holds more than the final state and one layer.

    Args:
        model: loaded; changed for good, so that it no longer trains.
        merge_lora: put LoRA and token rows into the weights.
        precision: of each part (``parse_precision``).
        placement: where it runs (``choose_placement``).

    Raises:
        ConfigError: there is no LoRA to merge, or it cannot be merged.
    """
    places = _places(model, placement)

    def place(module: nn.Module) -> None:
        """Moves a unit's module, or one below it, to where it will be."""
        move_frozen_first(module, places.get(id(module), placement.main))

    if not precision.quantizes:
        _move(model, placement)
    if merge_lora and not precision.merges_lora:
        model.merge_lora()
    precision.apply(model, place, placement.main)
    model.prepare_for_prediction()
    if precision.quantizes:
        _move(model, placement)
    if placement.main == "cpu":
        _warn_of_emulation(model)
    elif isinstance(model, Sa2VAModel):
        for module in model.prediction_parts()["sam2"].modules:
            channels_last(module)
    if placement.kind == "sharded":
        dispatch(model, placement)


def _warn_of_emulation(model: SegmentationModel) -> None:
    parts = list(model.prediction_parts())
    dtypes = {model.compute_dtype(part) for part in parts or [""]} - {None}
    slow = [str(dtype).removeprefix("torch.") for dtype in dtypes if emulates(dtype)]
    if slow:
        advice = "--precision fp32, or llm=int8,vit=fp32,sam2=fp32 where memory is short"
        if not parts:
            advice = "--cfg-options model.autocast=None"
        print_log(
            f"This CPU has no instructions for {listing(slow)}: predicting is many times faster "
            f"with {advice}",
            logger="current",
            level=logging.WARNING,
        )


def _move(model: SegmentationModel, placement: Placement) -> None:
    """Puts every weight where it stays, frozen ones first."""
    if placement.kind != "sharded":
        move_frozen_first(model, placement.main)
        return
    for unit in units_of(model):
        for module in unit.modules:
            move_frozen_first(module, placement.home(unit.name))
    model.data_preprocessor.to(placement.main)


def _places(model: SegmentationModel, placement: Placement) -> dict[int, str]:
    """Device of each module of a sharded model, by its id."""
    if placement.kind != "sharded" or not isinstance(model, Sa2VAModel):
        return {}
    return {
        id(below): placement.home(unit.name)
        for unit in units_of(model)
        for module in unit.modules
        for below in module.modules()
    }
