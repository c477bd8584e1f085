"""What is chosen, by numbers; and what a user reads where nothing can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from projects.sa2va.config import load_config
from projects.sa2va.errors import ConfigError, MemoryFullError, SetupError, UserError
from projects.sa2va.placement import (
    Placement,
    choice,
    choose_placement,
    parse_precision,
    prepare_for_prediction,
)
from projects.sa2va.placement.choice import decide
from projects.sa2va.placement.costs import Costs, costs_of, weigh
from projects.sa2va.placement.partition import UnitCost
from projects.sa2va.placement.units import units_of
from projects.sa2va.planning import Request, make_plan
from projects.sa2va.planning.section import GIB
from tests.models.conftest import build

# 13 GiB on one card: 4 layers of 3, and 1 that passes.
COSTS = Costs(tuple(UnitCost(f"layers.{i}", 3 * GIB, GIB) for i in range(4)))


def decided(kind: str, *free: int, gpus: int | None = None, host: int = 99 * GIB) -> Placement:
    cards = [f"cuda:{i}" for i in range(len(free))]
    asked = Placement(kind=kind, gpus=gpus)
    return decide(asked, COSTS, cards, [gib * GIB for gib in free], host)


def test_auto_takes_the_first_card_that_holds_the_model() -> None:
    assert COSTS.single == 13 * GIB
    place = decided("auto", 13)
    assert (place.kind, place.devices, place.units) == ("single", ("cuda:0",), {})
    assert decided("auto", 12, 14).devices == ("cuda:1",)
    assert "13.00 GiB, free are 12.00 GiB, 14.00 GiB" in decided("auto", 12, 14).describe()


def test_auto_spreads_what_fits_no_card() -> None:
    place = decided("auto", 12, 12)
    assert (place.kind, place.devices) == ("sharded", ("cuda:0", "cuda:1"))
    assert list(place.units.values()) == ["cuda:0"] * 2 + ["cuda:1"] * 2
    assert not place.waiting
    # A card that is too full for any layer is not used.
    assert decided("auto", 1, 12, 12).devices == ("cuda:1", "cuda:2")


def test_auto_takes_every_card_only_where_several_are_asked_for() -> None:
    assert decided("auto", 13, 13).kind == "single"
    assert decided("auto", 13, 13, gpus=2).kind == "data-parallel"
    assert decided("auto", 13, 12, gpus=2).kind == "sharded"
    assert decided("auto", 13, gpus=1).kind == "single"


def test_auto_keeps_nothing_on_the_host() -> None:
    with pytest.raises(MemoryFullError) as caught:
        decided("auto", 6, 6)
    said = str(caught.value)
    assert "takes 13.00 GiB, and cuda:0 with 6.00 GiB free, cuda:1 with 6.00 GiB free" in said
    for way in ("--precision llm=nf4", "--gpus", "--placement sharded", "--placement cpu"):
        assert way in caught.value.fix


def test_sharded_keeps_on_the_host_what_does_not_fit_then_on_disk() -> None:
    place = decided("sharded", 4, 7, host=4 * GIB)
    assert set(place.units) == {f"layers.{i}" for i in range(4)}
    assert sorted(place.waiting.values()) == ["disk", "host"]
    assert "the weights of 1 of them on disk, the weights of 1 of them on host" in place.describe()
    assert place.home(next(iter(place.waiting))) == "cpu"
    assert place.as_dict()["waiting"] == {"disk": 1, "host": 1}
    with pytest.raises(MemoryFullError) as caught:
        decided("sharded", 3, 3)
    assert "layers.0, 4.00 GiB" in caught.value.expected
    assert "--placement cpu" in caught.value.fix


def test_a_config_holds_a_placement() -> None:
    place = decided("sharded", 4, 7)
    assert Placement.from_config(place.as_config()) == place
    assert Placement.from_config(None).kind == "single"
    assert Placement.from_config("sharded").kind == "sharded"


# ------------------------------------------------------------------------------- whole choices

SA2VA = {"model": {"type": "Sa2VAModel"}}
UNET = {"model": {"type": "UNetModel"}}


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pretends cards with so many free bytes."""
    free = [12 * GIB, 14 * GIB]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(choice, "free_bytes", lambda name: free[int(name.partition(":")[2])])
    monkeypatch.setattr(choice, "get_device", lambda: "cuda" if free else "cpu")
    monkeypatch.setattr(choice, "costs_of", lambda *_args: COSTS)
    return free


def test_what_is_asked_for(cards: list[int]) -> None:
    assert choose_placement(SA2VA, "single").devices == ("cuda",)
    assert choose_placement(SA2VA, "single", device="cuda:1").devices == ("cuda:1",)
    assert choose_placement(SA2VA, "cpu").devices == ("cpu",)
    assert choose_placement(SA2VA, "auto", device="cpu").kind == "cpu"
    assert choose_placement(SA2VA).devices == ("cuda:1",)
    assert choose_placement(SA2VA, device="cuda:1").kind == "single"
    assert choose_placement(SA2VA, memory_gib=12).kind == "sharded"
    assert choose_placement({**SA2VA, "memory_budget_gib": 8}).kind == "sharded"
    assert choose_placement(SA2VA, "data-parallel").gpus == 2
    assert choose_placement(SA2VA, "sharded", gpus=1).waiting
    assert choose_placement(UNET).devices == ("cuda",)
    cards.clear()
    assert choose_placement(SA2VA).reason == "no card"
    assert choose_placement(SA2VA, "single").kind == "cpu"
    assert choose_placement(SA2VA, "sharded").devices == ("cpu",)
    assert set(choose_placement(SA2VA, "sharded", memory_gib=7).waiting.values()) == {"disk"}
    assert choose_placement(SA2VA, "data-parallel", gpus=2).gpus == 2


@pytest.mark.parametrize(
    ("cfg", "arguments", "kind", "says"),
    [
        (SA2VA, dict(kind="shard"), ConfigError, "did you mean 'sharded'?"),
        (SA2VA, dict(gpus=3), SetupError, "--gpus 3 and 2 card(s)"),
        (SA2VA, dict(gpus=0), ConfigError, "at least 1"),
        (SA2VA, dict(device="cuda:2"), SetupError, "'cuda:2' on a machine with 2 card(s)"),
        (SA2VA, dict(device="gpu"), SetupError, "auto, cpu, or a card"),
        (SA2VA, dict(memory_gib=4), MemoryFullError, "cards that hold it together"),
        (UNET, dict(kind="sharded"), ConfigError, "model.type='UNetModel'"),
    ],
)
def test_refusals(
    cards: list[int], cfg: dict, arguments: dict[str, Any], kind: type[UserError], says: str
) -> None:
    with pytest.raises(kind) as caught:
        choose_placement(cfg, **arguments)
    assert says in str(caught.value)
    assert caught.value.expected and caught.value.fix


def test_processes_without_cards_are_counted_by_the_user(cards: list[int]) -> None:
    cards.clear()
    with pytest.raises(SetupError, match="no card"):
        choose_placement(SA2VA, "data-parallel")


# -------------------------------------------------------------------------------------- costs


def test_units_weigh_what_the_plan_says(experiment: Path) -> None:
    cfg = load_config(experiment, {"test_cfg.merge_lora": True, "model.autocast": "bfloat16"})
    for key in ("train_dataloader", "train_cfg"):
        cfg.pop(key)
    costs = costs_of(cfg, parse_precision(None))
    section = make_plan(cfg, Request()).section("inference")
    weights = section.group("weights") + section.group("trained weights")
    assert sum(unit.weights for unit in costs.units) == weights
    assert costs.single == section.peak
    runs = {unit.name: unit.runs for unit in costs.units}
    assert not runs.pop("head") and all(runs.values())


@pytest.mark.parametrize(
    "spec", ["config", "bf16", "fp32", "int8", "llm=nf4", "vit=int8", "sam2=fp32"]
)
def test_units_weigh_what_they_hold_in_the_end(spec: str, monkeypatch) -> None:
    # As on a card: a CPU without bfloat16 keeps more in float32.
    monkeypatch.setattr("projects.sa2va.placement.precision.emulates", lambda dtype: False)
    for package, word in (("bitsandbytes", "nf4"), ("torchao", "int8")):
        if word in spec:
            pytest.importorskip(package)
    precision = parse_precision(spec)
    half = dict(dtype="bfloat16")
    model = build(
        autocast="bfloat16",
        mllm=dict(half, quantization="nf4" if precision.llm == "nf4" else None),
        grounding=half,
    )
    if precision.is_config:
        model.prepare_for_prediction()
    if precision.merges_lora:
        model.merge_lora()
    planned = weigh(model, precision)
    prepare_for_prediction(
        model,
        merge_lora=False,
        precision=precision,
        placement=Placement("cpu", devices=("cpu",)),
    )
    for unit in units_of(model):
        held = sum(_held(tensor) for tensor in unit.tensors())
        assert abs(held - planned[unit.name]) <= 0.03 * held + 512, unit.name


def _held(tensor: Tensor) -> int:
    """Bytes of a tensor and of what it is made of."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return sum(_held(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()
