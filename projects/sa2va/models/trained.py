"""Weights of the joint model by name: what trained, out and in, and what a checkpoint changes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from projects.sa2va.errors import CheckpointError, listing
from projects.sa2va.weights.parts import by_part, part_of
from projects.sa2va.weights.tables import OUR_TRAINING

_FIX = (
    "test with the config the checkpoint was trained with (it is stored inside: meta.cfg), or "
    "correct model.mllm.lora, model.grounding.train_mask_decoder and the like"
)


def our_names(model: nn.Module) -> dict[str, str]:
    """Names of ``weights/tables.py`` (without peft's wrappers) to the model's own, all weights."""
    names = model.state_dict(keep_vars=True).keys()
    return {piece.targets[0]: piece.sources[0] for piece in OUR_TRAINING.to_ours(names).pieces}


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What trains, under the model's own names."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def load_trained_state_dict(
    model: nn.Module, state: Mapping[str, Tensor], source: str, fix: str = _FIX
) -> dict[str, int]:
    """Loads the tensors of everything that trains; nothing may be missing or left over.

    Args:
        model: the joint model.
        state: the model's own names to tensors.
        source: where it came from, for messages.
        fix: advice of the error.

    Returns:
        Number of tensors loaded by part.

    Raises:
        CheckpointError: missing, unexpected or differently shaped weights; nothing is loaded then.
    """
    own = trained_parameters(model)
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} in the file, {_shape(own[name])} in the model"
        for name in sorted(own.keys() & state.keys())
        if tuple(state[name].shape) != _shape(own[name])
    ]
    if missing or unexpected or shapes:
        problems = (("missing", missing), ("unexpected", unexpected), ("other shape", shapes))
        raise CheckpointError(
            found=f"{source} does not fit this model: "
            + "; ".join(
                f"{len(names)} {kind} ({_by_part(names)}): {listing(names, 5)}"
                for kind, names in problems
                if names
            ),
            expected="exactly the trained weights of the model that the config describes",
            fix=fix,
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])
    return {part: len(names) for part, names in by_part(own).items()}


def change_frozen(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> list[str]:
    """Puts tensors into frozen weights where they differ from what is there.

    Args:
        model: the joint model.
        tensors: the model's own names to tensors.
        source: where they came from, for messages.

    Returns:
        Names of the weights that changed.

    Raises:
        CheckpointError: a tensor of another shape; nothing is changed then.
    """
    own = dict(model.named_parameters(remove_duplicate=False))
    wrong = [f"{name} (no such weight)" for name in tensors if name not in own]
    wrong += [
        f"{name} {tuple(tensor.shape)} in the file, {_shape(own[name])} in the model"
        for name, tensor in tensors.items()
        if name in own and tuple(tensor.shape) != _shape(own[name])
    ]
    if wrong:
        raise CheckpointError(
            found=f"{source} does not fit this model: {len(wrong)} other shape "
            f"({_by_part(wrong)}): {listing(wrong, 5)}",
            expected="the base weights and the tokenizer that it was trained over",
            fix="set model.mllm.pretrained, model.grounding.pretrained and processor.tokenizer as "
            "in that training",
        )
    changed = []
    with torch.no_grad():
        for name, tensor in tensors.items():
            new = tensor.to(own[name].device, own[name].dtype)
            if not torch.equal(new, own[name]):
                own[name].copy_(new)
                changed.append(name)
    return changed


def _shape(parameter: Tensor) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _by_part(names: list[str]) -> str:
    return listing(sorted({part_of(name.split(" ")[0]) for name in names}))
