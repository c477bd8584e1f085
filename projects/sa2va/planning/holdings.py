"""What a model holds from the first step to the last, on one card, by part and dtype."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from projects.sa2va.models import Sa2VAModel, part_of

from .optimisers import state_bytes, step_bytes
from .section import Item
from .strategies import Strategy

_TABLES = ("MLLM embeddings", "MLLM head")


@dataclass(frozen=True)
class Holdings:
    """Bytes of a whole model, before any strategy spreads them.

    Attributes:
        frozen, trained: weights by (part, dtype).
        values: number of trained values.
        tables: those of them in whole embedding or head tables.
        rows: values of the token rows that would take their place.
        states: optimiser states.
        step: what a step of the optimiser takes for a while.
        linear_copies: half of the bytes of trained linear layers: their copies under autocast.
        largest: the largest module that is gathered at once (a decoder layer, or a table).
        outside: weights outside all blocks and tables, which FSDP2 gathers for a whole step.
        layers: bytes of the inputs of all decoder layers, per token.
    """

    frozen: dict[tuple[str, str], int]
    trained: dict[tuple[str, str], int]
    values: int
    tables: int
    rows: int
    states: int
    step: int
    linear_copies: int
    largest: int
    outside: int
    layers: int

    @property
    def weights(self) -> int:
        return sum(self.frozen.values()) + sum(self.trained.values())

    def items(self, strategy: Strategy) -> list[Item]:
        """Weights on a card, by part and dtype."""
        rows = [("weights", key, size) for key, size in self.frozen.items()]
        rows += [("trained weights", key, size) for key, size in self.trained.items()]
        if strategy.offload_param:
            return []
        sharded = strategy.shards_weights
        mark = {"weights": "", "trained weights": "trained: "}
        return [
            Item(group, f"{mark[group]}{part}, {dtype}", strategy.share(size, sharded))
            for group, (part, dtype), size in rows
        ]


def holdings_of(
    model: Sa2VAModel, optimizer: Mapping[str, Any] | None, strategy: Strategy
) -> Holdings:
    """Counts ``model``; every storage once, whatever its number of users.

    Args:
        model: with fake or real tensors (a 4-bit layer counts as what it holds).
        optimizer: ``optim_wrapper.optimizer``, None where nothing trains.
        strategy: how it trains.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    frozen: dict[tuple[str, str], int] = {}
    trained: dict[tuple[str, str], int] = {}
    for name, tensor in _once([*model.named_parameters(), *model.named_buffers()]):
        group = trained if tensor.requires_grad else frozen
        key = (part_of(name), str(tensor.dtype).removeprefix("torch."))
        group[key] = group.get(key, 0) + _size(tensor)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    tables = [p for name, p in model.named_parameters() if part_of(name) in _TABLES]
    each = [sum(map(_size, block.parameters())) for block in blocks]
    text = model.mllm.model.config.text_config
    added = len(model.processor.added_token_ids)
    width = 2 if model.autocast_dtype is not None or strategy.rounds else 4
    inside = sum(each) + sum(map(_size, tables))
    return Holdings(
        frozen=frozen,
        trained=trained,
        values=sum(p.numel() for p in parameters),
        tables=sum(p.numel() for name, p in named if part_of(name) in _TABLES),
        rows=added * text.hidden_size * sum(table.requires_grad for table in tables),
        states=0 if optimizer is None else state_bytes(optimizer, parameters),
        step=0 if optimizer is None else step_bytes(optimizer, named, strategy.deepspeed),
        linear_copies=sum(
            _size(m.weight) // 2
            for m in model.modules()
            if isinstance(m, nn.Linear) and m.weight.requires_grad
        ),
        largest=max([*each, *map(_size, tables)], default=0),
        outside=max(0, sum(frozen.values()) + sum(trained.values()) - inside),
        layers=text.num_hidden_layers * text.hidden_size * width,
    )


def averages(cfg: Mapping[str, Any]) -> bool:
    """Whether the config keeps averaged weights (``engine/ema.py``)."""
    return any(hook.get("type") == "WeightEMAHook" for hook in configured_hooks(cfg))


def configured_hooks(cfg: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The hooks of a config, default and custom ones; None, which switches one off, is left out."""
    hooks = [*(cfg.get("default_hooks") or {}).values(), *(cfg.get("custom_hooks") or ())]
    return [hook for hook in hooks if hook]


def _once(named: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    seen: set[int] = set()
    for name, tensor in named:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
