"""The fullest moment on a card: traced tensors, and what strategy, optimiser and CUDA add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .holdings import Holdings, averages
from .section import GIB, SLACK, Item, Section
from .steps import Frames
from .strategies import Strategy
from .tracing import COPIES, GRADIENTS, INPUTS, LOGITS, STATIC, Moment

# cuBLAS keeps a workspace for the thread of the forward and that of the backward pass: 32 MiB each
# on Hopper, less on older cards.
_WORKSPACES = 2 * 32 * 2**20
# What SAM2's encoder takes inside kernels, which tracing cannot see; from the measured prediction
# of 8 frames of 1024 px (benchmarks/README.md), whose tensors are 0.8 GiB less.
_ENCODER_KERNELS = 0.1 * GIB / 1024**2  # bytes a px of SAM2's input, and a frame
# What the allocator holds beside tensors, with expandable segments: 0.10 to 0.19 GiB measured.
_SLACK, _SLACK_SHARE = 0.1 * GIB, 0.03
_ENCODING = ("sam2", "images")


def training_section(
    cfg: Mapping[str, Any],
    held: Holdings,
    moments: Mapping[str, Moment],
    frames: Frames,
    strategy: Strategy,
) -> Section:
    """What a card holds at the peak of a training step (not the first: optimiser states exist).

    Args:
        cfg: the config.
        held: what the model holds.
        moments: of :func:`~.steps.follow_training`.
        frames: the batch.
        strategy: how it is spread.
    """
    side = cfg["model"]["processor"]["image_size"]
    accumulates = _accumulation(cfg) > 1
    gradient = (2 if strategy.rounds else 4) * held.values
    whole = strategy.share(gradient, strategy.shards_gradients)
    if strategy.offload_optimizer and strategy.stage >= 2:
        whole = 0  # shards of gradients wait in host memory
    always = [*held.items(strategy), *_states(held, strategy), *_average(cfg, held, strategy)]
    if strategy.name == "ddp":
        always.append(Item("strategy", "DDP's gradient buckets", gradient))
    on_host = (
        _inputs_on_host(held, moments)
        if cfg["model"]["mllm"].get("gradient_checkpointing") == "cpu"
        else 0
    )
    candidates: dict[str, list[Item]] = {}
    for part, moment in moments.items():
        items = [*always, *_passing(part, moment, frames.batch, side, on_host)]
        if part == "backward":
            made = whole if accumulates else min(whole, moment.held.get(GRADIENTS, 0))
            items.append(Item("gradients", "gradients", made))
            items += _buckets(strategy, gradient)
        elif accumulates:
            items.append(Item("gradients", "gradients", whole))
        items += _gathered(held, strategy)
        candidates[part] = items
    candidates["optimiser"] = [*always, *_step(held, strategy, whole)]
    return _section("training", candidates, _other_streams(held, strategy))


def prediction_section(
    key: str,
    held: Holdings,
    moments: Mapping[str, Moment],
    batch: int,
    strategy: Strategy,
    *,
    cfg: Mapping[str, Any] | None = None,
    extra: int = 0,
    cache: int = 0,
) -> Section:
    """What a card holds at the peak of a prediction.

    Args:
        key: ``validation`` (optimiser states are there) or ``inference``.
        held: what the model holds.
        moments: of :func:`~.steps.follow_prediction`.
        batch: frames that go in together.
        strategy: how weights are spread.
        cfg: the config, where the prediction is a validation.
        extra: bytes of rounded weights beside those that were traced.
        cache: bytes of keys and values.
    """
    candidates = {}
    side_px = sum(
        size for kind, size in next(iter(moments.values())).held.items() if kind == INPUTS
    )
    side = int((side_px / 12 / max(1, batch)) ** 0.5)
    for part, moment in moments.items():
        items = [*held.items(strategy), *_passing(part, moment, batch, side, 0)]
        if key == "validation":
            items += _states(held, strategy)
            items += _average(cfg or {}, held, strategy)
            if strategy.name == "ddp":
                items.append(Item("strategy", "DDP's gradient buckets", 4 * held.values))
        if extra:
            items.append(Item("activations", COPIES, extra))
        if cache and part == "answer":
            items.append(Item("activations", "keys and values of the answer", cache))
        candidates[part] = [*items, *_gathered(held, strategy)]
    return _section(key, candidates, _other_streams(held, strategy))


def _section(key: str, candidates: Mapping[str, list[Item]], streams: int) -> Section:
    with_overhead = {
        part: [*items, *_overhead(items, streams)] for part, items in candidates.items()
    }
    parts = {part: sum(i.size for i in items) for part, items in with_overhead.items()}
    fullest = max(parts, key=parts.__getitem__)
    items = [item for item in with_overhead[fullest] if item.size]
    return Section(key, items, fullest, parts)


def _passing(part: str, moment: Moment, batch: int, side: int, on_host: int) -> list[Item]:
    """Items of what passes: activations, logits, rounded copies, inputs."""
    items = []
    for kind, size in moment.held.items():
        if kind in STATIC:
            continue
        if kind == "language":
            size = max(0, size - on_host)
        group = "logits" if kind == LOGITS else "activations"
        name = kind if kind in (LOGITS, COPIES, INPUTS) else f"activations, {kind}"
        items.append(Item(group, name, size))
    if part in _ENCODING:
        kernels = int(_ENCODER_KERNELS * side**2 * batch)
        items.append(Item("overhead", "workspaces of SAM2's encoder", kernels))
    return items


def _states(held: Holdings, strategy: Strategy) -> list[Item]:
    if strategy.offload_optimizer:
        return []
    items = [
        Item("optimiser", "optimiser states", strategy.share(held.states, strategy.shards_states))
    ]
    if strategy.deepspeed:
        masters = strategy.share(4 * held.values, strategy.stage >= 1)
        items.append(Item("optimiser", "float32 masters", masters))
    return items


def _average(cfg: Mapping[str, Any], held: Holdings, strategy: Strategy) -> list[Item]:
    """The float32 copy of what trains that WeightEMAHook keeps, spread as the weights are."""
    if not averages(cfg):
        return []
    size = strategy.share(4 * held.values, strategy.shards_weights)
    return [Item("trained weights", "averaged weights", size)]


def _step(held: Holdings, strategy: Strategy, gradients: int) -> list[Item]:
    """What the optimiser's step adds to what is always there."""
    items = [Item("gradients", "gradients", gradients)]
    if strategy.offload_optimizer:
        return items
    sharded = strategy.shards_states
    items.append(Item("optimiser", "the step's own tensors", strategy.share(held.step, sharded)))
    if strategy.deepspeed:
        size = strategy.share(4 * held.values, sharded)
        items.append(Item("gradients", "gradients in float32", size))
    return items


def _buckets(strategy: Strategy, gradient: int) -> list[Item]:
    if not strategy.deepspeed or strategy.stage == 0:
        return []
    width = 2 if strategy.rounds else 4
    size = strategy.buckets * strategy.bucket * width
    return [Item("strategy", "DeepSpeed's gradient buckets", size)]


def _gathered(held: Holdings, strategy: Strategy) -> list[Item]:
    """Weights that are whole for a while."""
    if strategy.stage == 3:
        # It keeps layers that are soon used again up to `live`; the module at work (a table of the
        # vocabulary at worst) comes on top, whole, with the shard that it is gathered from. Fitted:
        # without these two the measured 4.4 GiB on 4 cards came out as 3.1.
        most = (strategy.live + strategy.prefetch) * (2 if strategy.rounds else 4) + held.largest
        shard = strategy.share(held.largest) if strategy.offload_param else 0
        return [Item("strategy", "weights gathered by ZeRO-3", min(held.weights, most) + shard)]
    if strategy.name == "fsdp2":
        # A group gathered, its copy-out buffer or the next group, and what stays for the step.
        most = 2 * held.largest + held.outside
        return [Item("strategy", "weights gathered by FSDP2", min(held.weights, most))]
    return []


def _other_streams(held: Holdings, strategy: Strategy) -> int:
    """Memory that the allocator keeps for the stream in which weights are gathered.

    Another stream cannot use it, so it stays beside the peak: what ZeRO-3 keeps gathered, and the
    largest tensor. Fitted on four cards: 2.8 GiB under ZeRO-3 with offload, 1.1 under FSDP2.
    """
    if strategy.stage == 3:
        width = 2 if strategy.rounds else 4
        return min(held.weights, strategy.live * width + held.largest)
    return held.largest if strategy.name == "fsdp2" else 0


def _inputs_on_host(held: Holdings, moments: Mapping[str, Moment]) -> int:
    """Bytes of the layers' inputs; what the language model left behind is little else."""
    return moments["sam2"].held.get("language", 0) if "sam2" in moments else 0


def _overhead(items: list[Item], streams: int) -> list[Item]:
    moving = sum(i.size for i in items if i.group in ("activations", "logits", "gradients"))
    return [
        Item("overhead", "cuBLAS workspaces", _WORKSPACES),
        Item("overhead", SLACK, int(_SLACK + _SLACK_SHARE * moving) + streams),
    ]


def _accumulation(cfg: Mapping[str, Any]) -> int:
    own = (cfg.get("strategy") or {}).get("gradient_accumulation_steps")
    return own or (cfg.get("optim_wrapper") or {}).get("accumulative_counts", 1)
