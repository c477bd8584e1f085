"""Parameter groups: what trains, with which learning rate, and what decays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from projects.sa2va.engine import PartwiseConstructor
from projects.sa2va.errors import ConfigError

WRAPPER = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05))


class Toy(nn.Module):
    """Parameters under the names of the joint model."""

    def __init__(self) -> None:
        super().__init__()
        rows = nn.ParameterDict({"default": nn.Parameter(torch.ones(2, 3))})
        lora = nn.ModuleDict({"default": nn.Linear(3, 2, bias=False)})
        self.mllm = nn.ModuleDict(
            {"lora_A": lora, "trainable_tokens_delta": rows, "frozen": nn.Linear(3, 3)}
        )
        self.grounding = nn.ModuleDict({"mask_decoder": nn.Linear(3, 3)})
        self.grounding["mask_decoder"].iou_token_embed = nn.Parameter(torch.ones(1, 3))
        self.grounding["mask_decoder"].norm = nn.LayerNorm(3)
        self.seg_projector = nn.Sequential(nn.Linear(3, 3))
        self.mllm["frozen"].requires_grad_(False)


def groups(model: nn.Module, wrapper: dict = WRAPPER, **paramwise) -> dict[str, dict]:
    """Name of each optimised parameter -> its group's settings."""
    built = PartwiseConstructor(dict(wrapper), paramwise or None)(model)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)]: {"lr": group["lr"], "decay": group["weight_decay"]}
        for group in built.optimizer.param_groups
        for p in group["params"]
    }
    assert len(found) == sum(len(group["params"]) for group in built.optimizer.param_groups)
    return found


def test_only_what_trains_is_optimised():
    model = Toy()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert groups(model).keys() == trainable
    assert not any("frozen" in name for name in trainable)


def test_only_matrices_decay():
    decays = {name for name, group in groups(Toy()).items() if group["decay"] == 0.05}
    assert decays == {
        "mllm.lora_A.default.weight",
        "grounding.mask_decoder.weight",
        "seg_projector.0.weight",
    }
    rest = {group["decay"] for name, group in groups(Toy()).items() if name not in decays}
    assert rest == {0.0}


def test_learning_rate_by_part():
    found = groups(Toy(), lr_mult={"SAM2 mask decoder": 0.1, "token rows": 2.0})
    for name, group in found.items():
        factor = 0.1 if "mask_decoder" in name else 2.0 if "tokens_delta" in name else 1.0
        assert group["lr"] == pytest.approx(1e-3 * factor), name


def test_model_in_a_wrapper_of_ddp():
    model = Toy()
    wrapped = nn.Module()
    wrapped.module = model
    built = PartwiseConstructor(dict(WRAPPER))(wrapped)
    assert sum(len(group["params"]) for group in built.optimizer.param_groups) == len(groups(model))


def test_optimizer_without_decay_has_none():
    wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1))
    assert {group["decay"] for group in groups(Toy(), wrapper).values()} == {0.0}


def test_keys_of_the_optimizer_and_wrapper_arrive():
    wrapper = dict(
        type="OptimWrapper",
        accumulative_counts=4,
        clip_grad=dict(max_norm=0.5),
        optimizer=dict(type="AdamW", lr=1e-3, betas=(0.8, 0.9)),
    )
    built = PartwiseConstructor(wrapper)(Toy())
    assert built.optimizer.defaults["betas"] == (0.8, 0.9)
    assert built._accumulative_counts == 4
    assert built.clip_grad_kwargs == {"max_norm": 0.5}


@pytest.mark.parametrize(
    ("paramwise", "found", "suggested"),
    [
        ({"lr_mult": {"SAM2 mask decodr": 0.1}}, "SAM2 mask decodr", "'SAM2 mask decoder'"),
        ({"lr_multi": {"LoRA": 0.1}}, "paramwise_cfg.lr_multi", "'lr_mult'"),
        ({"custom_keys": {"x": {}}}, "paramwise_cfg.custom_keys", "lr_mult"),
    ],
)
def test_unknown_parts_and_keys(paramwise, found, suggested):
    with pytest.raises(ConfigError) as caught:
        groups(Toy(), **paramwise)
    assert found in caught.value.found
    assert suggested in caught.value.expected
