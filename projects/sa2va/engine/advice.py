"""Which item is large and avoidable, and the override that removes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from projects.sa2va.planning import Plan
from projects.sa2va.planning.holdings import Holdings
from projects.sa2va.planning.request import Request
from projects.sa2va.planning.strategies import Strategy

from .levers import Batch, Held, Lever, Situation, helpful
from .memory import GIB

_STATE = 8  # bytes of AdamW's moments
# Overrides of which a run learns the same (rounding apart), and those that only cost time.
_HARMLESS = (
    "model.mllm.gradient_checkpointing",
    "DEEPSPEED=deepspeed_zero2",
    "train_dataloader.batch_size",
)
_EIGHT_BIT_SHARE = 3 / 4
_SMALLEST = 0.05 * GIB  # not worth a line


@dataclass(frozen=True)
class Avoidable:
    """An item that a recipe need not have.

    Attributes:
        what: the item, with its size.
        override: what to change.
        saving: bytes.
    """

    what: str
    override: str
    saving: float


@dataclass(frozen=True)
class Advice:
    """The biggest avoidable item, and overrides that help further.

    Attributes:
        biggest: None where nothing large is avoidable without a loss.
        more: further overrides, the best first; they may cost accuracy or time.
    """

    biggest: Avoidable | None = None
    more: list[Lever] = field(default_factory=list)

    def text(self) -> str:
        """A line for the item, and one for each override."""
        lines = []
        if self.biggest is not None:
            lines.append(f"biggest avoidable item: {self.biggest.what}; use {_said(self.biggest)}")
        if self.more:
            lines.append("further overrides (estimates; some cost accuracy or time):")
            lines += [f"  {_said(lever)}" for lever in self.more]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Plain data, sizes in GiB."""
        rows = [
            {"override": lever.override, "saving_gib": lever.saving / GIB} for lever in self.more
        ]
        first = self.biggest
        return {
            "avoidable": None
            if first is None
            else {
                "what": first.what,
                "override": first.override,
                "saving_gib": first.saving / GIB,
            },
            "overrides": rows,
        }


def _said(lever: Avoidable | Lever) -> str:
    return f"{lever.override}  (about {lever.saving / GIB:.2g} GiB less)"


def advise(cfg: Mapping[str, Any], plan: Plan, request: Request) -> Advice:
    """Finds what is avoidable.

    Args:
        cfg: the config.
        plan: of it.
        request: what was asked.
    """
    held, strategy = plan.held, plan.strategy
    situation = _situation(cfg, plan, request)
    levers = helpful(situation)
    avoidable = [] if held is None else list(_needless(cfg, held, strategy))
    avoidable += [
        Avoidable(_what(lever.override), lever.override, lever.saving)
        for lever in levers
        if lever.override.startswith(_HARMLESS)
        and (request.gpus > 1 or not lever.override.startswith("DEEPSPEED="))
    ]
    avoidable = [a for a in avoidable if a.saving >= _SMALLEST]
    biggest = max(avoidable, key=lambda a: a.saving, default=None)
    more = [
        lever
        for lever in levers
        if lever.saving >= _SMALLEST and (biggest is None or lever.override != biggest.override)
    ]
    return Advice(biggest, more[:4])


def _needless(cfg: Mapping[str, Any], held: Holdings, strategy: Strategy) -> list[Avoidable]:
    """Items that a recipe of this project never has."""
    found = []
    if held.tables:
        per = (2 + 2 if strategy.rounds else 4 + 4) + (4 if strategy.deepspeed else 0) + _STATE
        size, rows = held.tables * per, held.rows * per
        found.append(
            Avoidable(
                f"embed_tokens and lm_head are copied and trained whole: {size / GIB:.1f} GiB "
                f"(token rows: {rows / GIB:.3f} GiB)",
                "model.mllm.train_token_rows=True, and without what trains the tables",
                size - rows,
            )
        )
    wide = sum(size for (_, dtype), size in held.frozen.items() if dtype == "float32")
    if cfg["model"].get("autocast") == "bfloat16" and wide > 0.1 * held.weights:
        found.append(
            Avoidable(
                f"frozen weights in float32: {wide / GIB:.1f} GiB",
                "model.mllm.dtype=bfloat16 model.grounding.dtype=bfloat16",
                wide / 2,
            )
        )
    kind = str((cfg["optim_wrapper"].get("optimizer") or {}).get("type"))
    if kind == "AdamW" and not strategy.deepspeed and not strategy.shards_weights:
        found.append(
            Avoidable(
                f"optimiser states in float32: {held.states / GIB:.2f} GiB",
                "optim_wrapper.optimizer.type=PagedAdamW8bit",
                held.states * _EIGHT_BIT_SHARE,
            )
        )
    return found


def _what(override: str) -> str:
    if override.startswith("model.mllm.gradient_checkpointing"):
        return "activations of all decoder layers are kept for the backward pass"
    if override.startswith("DEEPSPEED="):
        return "every card holds the same gradients and optimiser states"
    return "activations of several frames at once"


def _situation(cfg: Mapping[str, Any], plan: Plan, request: Request) -> Situation:
    """The plan as ``levers`` wants it."""
    held, strategy = plan.held, plan.strategy
    parts: dict[str, Held] = {}
    stage = "training" if held is not None else "testing"
    peak = max((section.peak for section in plan.sections), default=None)
    if held is not None:
        for group in (held.frozen, held.trained):
            for (part, _), size in group.items():
                own = parts.setdefault(part, Held())
                own.weights += size
                if group is held.trained:
                    share = size / max(1, sum(held.trained.values()))
                    own.trained += int(held.values * share)
                    own.gradients += size
                    own.optimiser += int(held.states * share)
    loader = "train_dataloader" if held is not None else "test_dataloader"
    batch = (cfg.get(loader) or {}).get("batch_size", 1)
    settings = {"zero_optimization": {"stage": strategy.stage}} if strategy.deepspeed else None
    view: dict[str, Any] = dict(cfg.items())
    view["strategy"] = {"config": settings} if settings else None
    return Situation(
        cfg=view,
        stage=stage,
        parts=parts,
        batch=Batch(batch, plan.tokens, batch * request.phrases),
        peak=peak,
        limit=int(request.card.usable_gib * GIB),
        world_size=request.gpus,
        sizes=plan.sizes,
    )
