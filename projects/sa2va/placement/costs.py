"""What the units of a config weigh when it predicts, known before anything is loaded."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from projects.sa2va.models import Sa2VAModel
from projects.sa2va.planning import Card, Request, make_plan
from projects.sa2va.planning.nf4 import stand_in_for_linears

from .partition import UnitCost, load
from .precision import Precision
from .units import Unit, units_of

# Bytes of a weight. int8: scale and zero point of a row come on top. nf4: 4 bits, a byte for each
# block of 64, and float32 for each 256 of those (QLoRA's double quantization).
_WIDTHS: dict[str, float] = {
    "bf16": 2.0,
    "fp16": 2.0,
    "fp32": 4.0,
    "int8": 1.0,
    "nf4": 0.5 + 1 / 64 + 4 / 64 / 256,
}
_PACKED = ("int8", "nf4")


@dataclass(frozen=True)
class Costs:
    """A model that predicts, in bytes.

    Attributes:
        units: in running order.
    """

    units: tuple[UnitCost, ...]

    @property
    def single(self) -> int:
        """What one device takes that holds all of it."""
        return load(self.units)


def costs_of(cfg: Mapping[str, Any], precision: Precision, frame_size: int = 1024) -> Costs:
    """Plans the prediction of a config (:mod:`projects.sa2va.planning`) and splits it by unit.

    Args:
        cfg: a checked config, changed by ``precision.before_build``.
        precision: of each part; what is quantized after loading is not in the config.
        frame_size: side of the frames in px.

    Raises:
        UserError: sizes that are not known.
    """
    built: list[Sa2VAModel] = []
    plan = make_plan(cfg, Request(Card(), frame_size=frame_size), alter=built.append)
    section = plan.section("inference")
    weights = section.group("weights") + section.group("trained weights")
    passing = {part: size - weights for part, size in (section.parts or {}).items()}
    model = _prepared(cfg, built[0], precision)
    weights_of = weigh(model, precision)
    forced = model.answer_mode == "forced"
    units = []
    for unit in units_of(model):
        # SAM2 encodes images first and decodes masks last.
        parts = ("images",) if unit.encodes else ("answer",)
        parts = ("images", "answer") if unit.name == "sam2" else parts
        units.append(
            UnitCost(
                unit.name,
                weights_of[unit.name],
                max(passing[part] for part in parts),
                unit.may_wait,
                runs=unit.name != "head" or not forced,
            )
        )
    return Costs(tuple(units))


def weigh(model: Sa2VAModel, precision: Precision) -> dict[str, int]:
    """Bytes of each unit once it has its precision.

    Args:
        model: as it will be but for what is cast or quantized after loading; data or not.
        precision: of each part.
    """
    words = precision.as_dict()
    parts = model.prediction_parts()
    packed = _ids_below(layer for part in parts.values() for layer in part.layers)
    whole = _ids_below(module for part in parts.values() for module in part.trained)
    sizes = {}
    for unit in units_of(model):
        word = words[_part(unit.name)]
        # models/sa2va.py rounds what autocast rounds; SAM2's own weights it leaves as they are.
        rounds = model.autocast_dtype is not None and word != "fp32" and unit.name != "sam2"
        sizes[unit.name] = _unit_bytes(unit, word, packed, whole, rounds)
    return sizes


def _prepared(cfg: Mapping[str, Any], model: Sa2VAModel, precision: Precision) -> Sa2VAModel:
    """A copy without data as it is when it predicts."""
    prepared = copy.deepcopy(model)
    merges = (cfg.get("test_cfg") or {}).get("merge_lora") or precision.merges_lora
    if cfg["model"]["mllm"].get("quantization") is not None:
        stand_in_for_linears(prepared)
    elif merges:
        with torch.device("meta"):
            prepared.mllm.merge_lora()
    if precision.is_config:
        prepared.prepare_for_prediction()
    return prepared


def _part(name: str) -> str:
    if name == "sam2":
        return "sam2"
    return "vit" if name.startswith(("vision.", "projector")) else "llm"


def _ids_below(modules: Iterable[nn.Module]) -> set[int]:
    return {id(below) for module in modules for below in module.modules()}


def _unit_bytes(unit: Unit, word: str, packed: set[int], whole: set[int], rounds: bool) -> int:
    """Bytes of a unit.

    Args:
        unit: of a model.
        word: one of ``precision.WORDS``.
        packed: ids of the modules whose linear layers ``int8`` and ``nf4`` concern.
        whole: ids of the modules that stay float32 because they train.
        rounds: whether linear layers that train are rounded to two bytes.
    """
    seen: set[int] = set()
    total = 0
    for module in unit.modules:
        for below in module.modules():
            linear = isinstance(below, nn.Linear)
            for name, tensor in below.named_parameters(recurse=False):
                if id(tensor) in seen:
                    continue
                seen.add(id(tensor))
                if tensor.requires_grad:
                    width = 2.0 if linear and rounds else float(tensor.element_size())
                elif word not in _WIDTHS or not tensor.is_floating_point():
                    width = float(tensor.element_size())
                elif word in _PACKED and linear and name == "weight" and id(below) in packed:
                    width = _WIDTHS[word] + 8 / tensor.shape[1]  # scale and zero a row
                elif id(below) in whole:
                    width = float(tensor.element_size())
                else:
                    width = 2.0 if word in _PACKED else _WIDTHS[word]
                total += round(tensor.numel() * width)
            for tensor in below.buffers(recurse=False):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    total += tensor.numel() * tensor.element_size()
    return total
