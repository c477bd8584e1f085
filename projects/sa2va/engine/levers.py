"""Which overrides of a config save how much memory: estimates, to choose among them.

The formulas count the tensors that a step keeps for its backward pass, by their shapes. They are
good to a factor of about two, which is enough to put the overrides in order.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from projects.sa2va.planning.holdings import averages

REMOVE = "remove "
"""Begins what is done in the config: a hook of a list is no key of ``--cfg-options``."""
_SMALL_IMAGE, _SMALL_RANK = 512, 16
_NF4 = 0.28  # bytes of a 4-bit weight with its constants, by those of a bfloat16 one
_AVERAGE = 4  # bytes of a trained value in it
_MIN_SAVING = 2**20
_OF_DATA = ("processor.", "train_dataloader.", "val_dataloader.", "test_dataloader.")
_QWEN2_7B = (28, 3584, 18944)
# Bytes a pixel of SAM2's input: what one object's mask keeps (decoder's maps at a quarter of the
# side, the loss at full size, float32), and one frame's encoder (bfloat16, nothing kept).
_MASK_BYTES, _FRAME_BYTES = 96, 216


@dataclass
class Held:
    """Bytes that one part holds, and how many of its values train."""

    weights: int = 0
    gradients: int = 0
    optimiser: int = 0
    trained: int = 0


@dataclass(frozen=True)
class Batch:
    """Frames, tokens of the longest prompt, and phrases (masks) of a batch."""

    frames: int = 1
    tokens: int = 300
    phrases: int = 1


@dataclass(frozen=True)
class Lever:
    """An override (or what to :data:`REMOVE` from the config) and the bytes that it saves."""

    override: str
    saving: float


@dataclass(frozen=True)
class Situation:
    """A run whose card was full.

    Attributes:
        cfg: its config.
        stage: ``training``, ``validation``, ``testing`` or ``loading``.
        parts: what its parts hold, by name.
        batch: the batch that did not fit.
        peak: highest allocation in bytes, None where it is not known.
        limit: bytes that there are, None where that is not known.
        world_size: number of processes.
        sizes: layers, hidden and inner size of the language model; None for Qwen2 7B's.
    """

    cfg: Mapping
    stage: str
    parts: Mapping[str, Held] = field(default_factory=dict)
    batch: Batch = Batch()
    peak: int | None = None
    limit: int | None = None
    world_size: int = 1
    sizes: tuple[int, int, int] | None = None

    def get(self, key: str, default: Any = None) -> Any:
        """The config's value under a key with dots."""
        node: Any = self.cfg
        for part in key.split("."):
            node = node.get(part) if hasattr(node, "get") else None  # Config is no Mapping
        return default if node is None else node

    @property
    def trains(self) -> bool:
        return self.cfg.get("train_cfg") is not None

    @property
    def steps(self) -> bool:
        """Whether the memory of a training step counts."""
        return self.trains and self.stage in ("training", "loading")

    def total(self, kind: str) -> int:
        return sum(getattr(held, kind) for held in self.parts.values())

    @property
    def held(self) -> int:
        return self.total("weights") + self.total("gradients") + self.total("optimiser")


def helpful(situation: Situation) -> list[Lever]:
    """The overrides that save memory in this situation and are not in effect, the best first."""
    levers = [*_weights(situation), *_activations(situation), *_prediction(situation)]
    if situation.get("model.type", "Sa2VAModel") != "Sa2VAModel":
        # A baseline has none of the parts; its batches and images are the data's affair.
        levers = [lever for lever in levers if lever.override.startswith((*_OF_DATA, REMOVE))]
    worth = [lever for lever in levers if lever.saving >= _MIN_SAVING]
    return sorted(worth, key=lambda lever: -lever.saving)


def _weights(s: Situation) -> Iterator[Lever]:
    """What is held from the first step to the last."""
    quantized = s.get("model.mllm.quantization") is not None
    language = s.parts.get("MLLM language model", Held())
    can_quantize = importlib.util.find_spec("bitsandbytes") is not None
    if not quantized and _stage_of_zero(s) < 3 and can_quantize:
        yield Lever("model.mllm.quantization=nf4", language.weights * (1 - _NF4))
    if not s.trains:
        return
    lora, rank = s.parts.get("LoRA", Held()), s.get("model.mllm.lora.r", 0)
    if rank > _SMALL_RANK:
        held = lora.weights + lora.gradients + lora.optimiser
        alpha = s.get("model.mllm.lora.lora_alpha", 8) * _SMALL_RANK / rank
        alpha = int(alpha) if alpha == int(alpha) else alpha
        yield Lever(
            f"model.mllm.lora.r={_SMALL_RANK} model.mllm.lora.lora_alpha={alpha}",
            held * (1 - _SMALL_RANK / rank),
        )
    decoder = s.parts.get("SAM2 mask decoder", Held())
    if s.get("model.grounding.train_mask_decoder", True):
        yield Lever(
            "model.grounding.train_mask_decoder=False", decoder.gradients + decoder.optimiser
        )
    if averages(s.cfg):  # which DeepSpeed refuses
        yield Lever(f"{REMOVE}WeightEMAHook from custom_hooks", _AVERAGE * s.total("trained"))
    else:
        yield from _deepspeed(s, quantized)


def _deepspeed(s: Situation, quantized: bool) -> Iterator[Lever]:
    """One kind of DeepSpeed: the least that helps."""
    stage, share = _stage_of_zero(s), 1 - 1 / s.world_size
    spread = s.total("gradients") + s.total("optimiser")
    too_large = s.limit is not None and s.total("weights") > 0.6 * s.limit
    if stage == 0 and not too_large:
        if s.world_size > 1:
            yield Lever("DEEPSPEED=deepspeed_zero2", spread * share)
        else:
            yield Lever("DEEPSPEED=deepspeed_zero2_offload", s.total("optimiser"))
    elif stage < 3 and not quantized:
        if s.world_size > 1:
            yield Lever("DEEPSPEED=deepspeed_zero3", (s.total("weights") + spread) * share)
        else:
            # One layer at a time, and the gradients, stay.
            held = 0.9 * s.total("weights") + s.total("optimiser")
            yield Lever("DEEPSPEED=deepspeed_zero3_offload", held)


def _stage_of_zero(s: Situation) -> int:
    if s.get("runner_type") == "Sa2VAShardedRunner":
        return 3  # FSDP2 spreads the same
    return int(s.get("strategy.config.zero_optimization.stage", 0))


def _activations(s: Situation) -> Iterator[Lever]:
    """What a training step holds between its forward and its backward pass."""
    if not s.steps:
        return
    batch, side = s.batch, s.get("processor.image_size", 0)
    kept, stored = _language_bytes(s)
    checkpoints = bool(s.get("model.mllm.gradient_checkpointing", False))
    if not checkpoints:
        yield Lever("model.mllm.gradient_checkpointing=True", kept - stored)
    masks = side**2 * (_MASK_BYTES * batch.phrases + _FRAME_BYTES * batch.frames)
    if side > _SMALL_IMAGE:
        yield Lever(
            f"processor.image_size={_SMALL_IMAGE}", masks * (1 - (_SMALL_IMAGE / side) ** 2)
        )
    size = s.get("train_dataloader.batch_size", 1)
    if size > 1:
        used = masks + (stored if checkpoints else kept)
        if s.peak is not None:
            used = max(used, s.peak - s.held)
        counts = size * (
            s.get("strategy.gradient_accumulation_steps")
            or s.get("optim_wrapper.accumulative_counts", 1)
        )
        yield Lever(
            "train_dataloader.batch_size=1" + _accumulation(s, counts), used * (1 - 1 / size)
        )
    tiles = s.get("processor.max_tiles", 1)
    if tiles > 1:
        yield Lever("processor.max_tiles=1", (stored if checkpoints else kept) * (1 - 1 / tiles))


def _accumulation(s: Situation, counts: int) -> str:
    """The accumulation that leaves the optimiser step as it is, where the config's rules allow."""
    keys = ("train_cfg.max_iters", "train_cfg.val_interval", "default_hooks.checkpoint.interval")
    if any(s.get(key, counts) % counts for key in keys):
        return ""
    return f" optim_wrapper.accumulative_counts={counts}"


def _language_bytes(s: Situation) -> tuple[float, float]:
    """What the language model keeps for the backward pass, and with gradient checkpointing.

    A layer keeps about ten tensors of the hidden size and four of the inner size a token; with
    checkpointing its input alone, and one layer whole.
    """
    layers, hidden, inner = s.sizes or _QWEN2_7B
    size = 2 if s.get("model.autocast") else 4
    tokens = s.batch.frames * s.batch.tokens
    layer = tokens * size * (10 * hidden + 4 * inner)
    return layers * layer, layers * tokens * size * hidden + layer


def _prediction(s: Situation) -> Iterator[Lever]:
    """What a prediction holds."""
    if s.steps:
        return
    loader = "val_dataloader" if s.stage == "validation" else "test_dataloader"
    side = s.get("processor.image_size", 0)
    _, hidden, inner = s.sizes or _QWEN2_7B
    size = s.get(f"{loader}.batch_size", 1)
    frame = side**2 * _FRAME_BYTES
    if size > 1:
        yield Lever(f"{loader}.batch_size=1", frame * s.batch.frames * (1 - 1 / size))
    most = s.get("model.max_phrases_per_pass", 16)
    together = min(most, s.batch.phrases)
    numbers = 2 if s.get("model.autocast") else 4
    phrase = side**2 * _MASK_BYTES + s.batch.tokens * numbers * (10 * hidden + 4 * inner)
    if together > 1 and _stage_of_zero(s) < 3:
        fewer = max(1, together // 4)
        yield Lever(f"model.max_phrases_per_pass={fewer}", phrase * (together - fewer))
    if side > _SMALL_IMAGE:
        saved = (frame * s.batch.frames + side**2 * _MASK_BYTES * together) * (
            1 - (_SMALL_IMAGE / side) ** 2
        )
        yield Lever(f"processor.image_size={_SMALL_IMAGE}", saved)
