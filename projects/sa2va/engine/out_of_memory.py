"""What to tell a user whose model does not fit on the card."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from projects.sa2va.columns import columns
from projects.sa2va.errors import MemoryFullError
from projects.sa2va.models import part_of
from projects.sa2va.models.parameters import PARTS

from .bare import bare_model
from .levers import REMOVE, Batch, Held, Situation, helpful
from .memory import GIB, MemoryHook, memory_hook

_ADAMW_STATES = 2  # moments, float32, of each trained value


@contextlib.contextmanager
def explain_out_of_memory(runner: Any) -> Iterator[None]:
    """Turns torch's OutOfMemoryError into one that says what holds the memory, and what helps.

    Args:
        runner: a runner, also one that is only half built.

    Raises:
        MemoryFullError: in place of torch.OutOfMemoryError.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise explained(runner, error) from error


def explained(runner: Any, error: torch.OutOfMemoryError) -> MemoryFullError:
    """The error for the user: breakdown, peak and budget, and the overrides that help most."""
    hook, cfg = memory_hook(runner), getattr(runner, "cfg", None) or {}
    stage = _stage(runner)
    model = getattr(runner, "model", None)
    built = bare_model(model) if isinstance(model, nn.Module) else None
    parts = held_by_part(built, getattr(runner, "optim_wrapper", None)) if built else {}
    peak = _peak(hook)
    limit, limit_text = _limit(cfg)
    situation = Situation(
        cfg=cfg,
        stage=stage,
        parts=parts,
        batch=_batch(hook),
        peak=peak,
        limit=limit,
        world_size=get_world_size(),
        sizes=_sizes(built),
    )
    during = "" if hook is None or hook.recorder is None else f", part: {hook.recorder.part}"
    table = "\n    ".join(_table(parts, peak))
    first = str(error).split(". ")[0].splitlines()[0] if str(error) else "torch.OutOfMemoryError"
    best = helpful(situation)[:3]
    options = "".join(
        f"\n    {_as_typed(lever.override)}  (about {lever.saving / GIB:.2g} GiB less)"
        for lever in best
    )
    return MemoryFullError(
        found=f"the card's memory is full ({stage}{during}): {first}"
        + (f"\n    {table}" if parts else ""),
        expected=f"at most {limit_text}",
        fix=(f"start again with the first that you can accept (estimates):{options}\n    " if best
             else "take a smaller model or a larger card; ")
        + "docs/errors.md, CUDA out of memory, has more",
    )  # fmt: skip


def _as_typed(override: str) -> str:
    if override.startswith("DEEPSPEED="):
        return f"{override} bash tools/dist.sh train ..."
    if override.startswith(REMOVE):
        return override
    return f"--cfg-options {override}"


def _sizes(model: nn.Module | None) -> tuple[int, int, int] | None:
    """Layers, hidden and inner size of the language model, where its config says them."""
    config = getattr(getattr(getattr(model, "mllm", None), "model", None), "config", None)
    text = getattr(config, "text_config", None)
    if text is None:
        return None
    return text.num_hidden_layers, text.hidden_size, text.intermediate_size


def held_by_part(model: nn.Module, wrapper: Any) -> dict[str, Held]:
    """What the parts of ``model`` hold on this card, in bytes.

    Gradients and optimiser states that do not exist yet are counted as they will be.

    Args:
        model: a SegmentationModel.
        wrapper: the optimiser wrapper; None, or still its config, where nothing is trained.
    """
    optimizer = getattr(wrapper, "optimizer", None)
    states: Mapping = getattr(optimizer, "state", {})
    parts: dict[str, Held] = {}
    for name, parameter in model.named_parameters():
        held = parts.setdefault(part_of(name), Held())
        local = getattr(parameter, "ds_tensor", _local(parameter))  # ZeRO-3's shard
        held.weights += _bytes(local)
        if not parameter.requires_grad or wrapper is None:
            continue
        count = int(getattr(parameter, "ds_numel", _local(parameter).numel()))
        held.trained += count
        held.gradients += _bytes(parameter if parameter.grad is None else parameter.grad)
        state = states.get(parameter) or {}
        made = [_bytes(value) for value in state.values() if isinstance(value, Tensor)]
        held.optimiser += sum(made) if made else _ADAMW_STATES * 4 * count
    order = [part for part, _ in PARTS] + ["other"]
    return {part: parts[part] for part in order if part in parts}


def _bytes(tensor: Tensor) -> int:
    return _local(tensor).numel() * tensor.element_size()


def _local(tensor: Tensor) -> Tensor:
    """This process's shard under FSDP2, else the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _table(parts: Mapping[str, Held], peak: int | None) -> list[str]:
    """Lines of GiB: weights, gradients, optimiser state by part; the rest is activations."""
    rows = [("GiB", "weights", "gradients", "optimiser state")]
    for part, held in parts.items():
        numbers = (held.weights, held.gradients, held.optimiser)
        rows.append((part, *(f"{n / GIB:.2f}" for n in numbers)))
    totals = [sum(getattr(h, key) for h in parts.values()) for key in _KINDS]
    rows.append(("all", *(f"{n / GIB:.2f}" for n in totals)))
    lines = columns(rows, right=range(1, 4))
    if peak is not None:
        rest = max(0, peak - sum(totals))
        lines.append(f"peak {peak / GIB:.2f}, of which activations and the like {rest / GIB:.2f}")
    return lines


_KINDS = ("weights", "gradients", "optimiser")


def _stage(runner: Any) -> str:
    hub = getattr(runner, "message_hub", None)
    stage = hub.runtime_info.get("loop_stage") if hub is not None else None
    return {"train": "training", "val": "validation", "test": "testing"}.get(stage, "loading")


def _peak(hook: MemoryHook | None) -> int | None:
    if hook is not None and hook.recorder is not None:
        return hook.recorder.highest()
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def _limit(cfg: Mapping) -> tuple[int | None, str]:
    """Bytes that this process may take, and the same in words."""
    budget = cfg.get("memory_budget_gib")
    if budget is not None:
        return int(budget * GIB), f"memory_budget_gib={budget}"
    if not torch.cuda.is_available():
        return None, "what the machine has"
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return total, f"the card's {total / GIB:.1f} GiB (memory_budget_gib is None)"


def _batch(hook: MemoryHook | None) -> Batch:
    """Sizes of the batch that did not fit."""
    inputs = ((hook.batch if hook is not None else None) or {}).get("inputs")
    if inputs is None:
        return Batch()
    frames = len(inputs["grounding_pixels"])
    if "masks" not in hook.batch:
        if "phrases" in inputs:  # a model without a language model
            return Batch(frames, 0, sum(map(len, inputs["phrases"])))
        lengths = [len(prompt) for group in inputs["prompts"] for prompt in group]
        return Batch(frames, max(lengths, default=0), len(lengths))
    masks = sum(len(own) for own in hook.batch["masks"])
    tokens = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
    return Batch(frames, tokens, masks)
