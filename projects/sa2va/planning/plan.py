"""The plan of a config: what a step, a prediction and the host hold, item by item."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from projects.sa2va.errors import ConfigError
from projects.sa2va.models import Sa2VAModel, part_of

from .card import Card
from .holdings import Holdings, holdings_of
from .host import host_items
from .model import build_without_data, give_fake_data
from .phases import prediction_section, training_section
from .request import Request
from .section import Section
from .sizes import cached_tokenizer
from .steps import (
    Frames,
    MakeTensor,
    cache_bytes,
    follow_prediction,
    follow_training,
    prompt_length,
)
from .strategies import Strategy, resolve_strategy
from .tracing import Moment


@dataclass(frozen=True)
class Plan:
    """What :func:`make_plan` found.

    Attributes:
        sections: on a card: training and validation (where the config trains), inference.
        host: host memory of a process, and of a machine with all of them.
        parameters: values by part: all, and those that train.
        card: the card that was assumed.
        strategy: the strategy of training.
        sizes: layers, hidden and inner size of the language model.
        tokens: of a prompt with its answer.
        assumptions: what was assumed, a line each.
        held: what training holds; None where the config only tests.
    """

    sections: list[Section]
    host: Section
    parameters: dict[str, tuple[int, int]]
    card: Card
    strategy: Strategy
    sizes: tuple[int, int, int]
    tokens: int
    assumptions: list[str] = field(default_factory=list)
    held: Holdings | None = None

    @property
    def fits(self) -> bool:
        return all(section.fits(self.card) for section in self.sections)

    def section(self, key: str) -> Section:
        """The section called ``training``, ``validation`` or ``inference``."""
        return next(section for section in self.sections if section.key == key)


def make_plan(
    cfg: Mapping[str, Any],
    request: Request,
    alter: Callable[[Sa2VAModel], None] | None = None,
) -> Plan:
    """Plans a config: nothing is downloaded, loaded or put on a card.

    Args:
        cfg: a checked config (``projects.sa2va.config.load_config``).
        request: cards and frames.
        alter: changes the built model before it is traced, for comparisons with models that no
            config gives.

    Raises:
        UserError: sizes or a strategy that are not known, or what building the model raises.
    """
    if cfg["model"]["type"] != Sa2VAModel.__name__:
        raise ConfigError(
            found=f"model.type={cfg['model']['type']!r}",
            expected=f"a {Sa2VAModel.__name__}: others are not planned",
            fix="train for a few iterations: the log has the peak (column memory)",
        )
    strategy = resolve_strategy(cfg, request.strategy, request.gpus)
    with _quiet():
        model = build_without_data(cfg["model"])
        if alter is not None:
            with torch.device("meta"):
                alter(model)
    quantization = cfg["model"]["mllm"].get("quantization")
    parameters = _count(model)
    sections: list[Section] = []
    trains = cfg.get("train_cfg") is not None and cfg.get("train_dataloader") is not None
    prepared, make = _fake(_prepared(cfg, model), quantization)
    inference, peaks = _inference(cfg, prepared, make, request)
    held: Holdings | None = None
    if trains:
        trained = copy.deepcopy(model)
        if strategy.rounds:
            trained = trained.bfloat16()
        fake, make = _fake(trained, quantization)
        held = holdings_of(fake, cfg["optim_wrapper"]["optimizer"], strategy)
        batch = Frames(cfg["train_dataloader"]["batch_size"], request.frame_size, request.phrases)
        moments = follow_training(fake, make, batch)
        training = training_section(cfg, held, moments, batch, strategy)
        sections.append(training)
        if cfg.get("val_dataloader") is not None:
            rounded = 0 if strategy.rounds or model.autocast_dtype is None else held.linear_copies
            frames = cfg["val_dataloader"]["batch_size"]
            if frames != (cfg.get("test_dataloader") or {}).get("batch_size", frames):
                like = Frames(frames, request.frame_size, request.phrases)
                peaks = follow_prediction(prepared, make, like)
            sections.append(
                prediction_section(
                    "validation", held, peaks, frames, strategy, cfg=cfg, extra=rounded
                )
            )
    sections.append(inference)
    text = model.mllm.model.config.text_config
    return Plan(
        sections=sections,
        host=host_items(cfg, held, strategy),
        parameters=parameters,
        card=request.card,
        strategy=strategy,
        sizes=(text.num_hidden_layers, text.hidden_size, text.intermediate_size),
        tokens=prompt_length(model, request.phrases),
        assumptions=_assumptions(cfg, request, strategy),
        held=held,
    )


def _prepared(cfg: Mapping[str, Any], model: Sa2VAModel) -> Sa2VAModel:
    """A copy as tools/test.py predicts with it."""
    prepared = copy.deepcopy(model)
    with _quiet():
        if (cfg.get("test_cfg") or {}).get("merge_lora"):
            prepared.mllm.merge_lora()
        prepared.prepare_for_prediction()
    return prepared


def _inference(
    cfg: Mapping[str, Any], prepared: Sa2VAModel, make: MakeTensor, request: Request
) -> tuple[Section, dict[str, Moment]]:
    """What tools/test.py holds, and the moments of its prediction."""
    loader = cfg.get("test_dataloader") or cfg.get("val_dataloader") or {}
    frames = Frames(loader.get("batch_size", 1), request.frame_size, request.phrases)
    peaks = follow_prediction(prepared, make, frames)
    single = Strategy("none")
    cache = 0
    if prepared.answer_mode == "generate":
        together = min(frames.batch * frames.phrases, prepared.max_phrases_per_pass)
        cache = cache_bytes(prepared, together)
    held = holdings_of(prepared, None, single)
    section = prediction_section("inference", held, peaks, frames.batch, single, cache=cache)
    return section, peaks


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the log of a model that is really built: nothing of it is on this machine."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def _fake(model: Sa2VAModel, quantization: str | None) -> tuple[Sa2VAModel, MakeTensor]:
    """``model`` with fake tensors, and what makes more of them."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def make(*shape: int, dtype: torch.dtype) -> Tensor:
        with mode:
            return torch.empty(*shape, dtype=dtype)

    return give_fake_data(model, mode, quantization), make


def _count(model: Sa2VAModel) -> dict[str, tuple[int, int]]:
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        total, trained = counts.get(part_of(name), (0, 0))
        more = parameter.numel() if parameter.requires_grad else 0
        counts[part_of(name)] = (total + parameter.numel(), trained + more)
    return counts


def _assumptions(cfg: Mapping[str, Any], request: Request, strategy: Strategy) -> list[str]:
    lines = [request.card.text()]
    where = f"{request.gpus} card{'s' if request.gpus > 1 else ''}, strategy {strategy.name}"
    lines.append(
        f"{where}; frames of {request.frame_size} px with {request.phrases} phrase"
        f"{'s' if request.phrases > 1 else ''} each"
    )
    tokenizer = cfg["model"]["processor"]["tokenizer"]
    pretrained = tokenizer.get("type") == "pretrained"
    if pretrained and not cached_tokenizer(str(tokenizer.get("path"))):
        lines.append("prompts as the byte-level tokenizer makes them: the model's is not here")
    return lines
