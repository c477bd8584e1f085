"""The model cut into units that never split, in the order in which they run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from projects.sa2va.models import Sa2VAModel


@dataclass(frozen=True)
class Unit:
    """Modules that live on one device.

    Attributes:
        name: ``vision.layers.3``, ``layers.0``, ``sam2`` ...
        modules: what it holds.
        calls: those of them whose ``forward`` is called, so that a hook can bring their inputs.
        encodes: it works on images; False: on the prompt and its answer.
        may_wait: its weights may stay on the host and come for each call.
    """

    name: str
    modules: tuple[nn.Module, ...]
    calls: tuple[nn.Module, ...]
    encodes: bool = False
    may_wait: bool = True

    def tensors(self) -> Iterator[Tensor]:
        """Its parameters and buffers, each once."""
        seen: set[int] = set()
        for module in self.modules:
            for tensor in (*module.parameters(), *module.buffers()):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield tensor


def units_of(model: Sa2VAModel) -> list[Unit]:
    """All weights of ``model``, every one in exactly one unit.

    SAM2, with a high-resolution head, is one unit: its weights are read without a module's call,
    so hooks (and accelerate's automatic device maps) fail on its parts. An embedding and a head
    that share their table are one unit, too.

    Args:
        model: on any devices, LoRA beside the weights or merged.
    """
    core = _core(model)
    vision, text = core.model.vision_tower, core.model.language_model
    embedding, head = core.get_input_embeddings(), core.get_output_embeddings()
    # transformers asks the first weight of a model for the device that it generates on, so the
    # first unit stays on its device.
    units = [_unit("vision.embeddings", vision.embeddings, encodes=True, may_wait=False)]
    units += [
        _unit(f"vision.layers.{i}", layer, encodes=True)
        for i, layer in enumerate(vision.encoder.layer)
    ]
    units.append(_unit("vision.norm", vision.layernorm, encodes=True))
    units.append(_unit("projector", core.model.multi_modal_projector, encodes=True))
    tied = has_tied_tables(model)
    units.append(_unit("embedding", embedding, text.rotary_emb, *([head] if tied else [])))
    units += [_unit(f"layers.{i}", layer) for i, layer in enumerate(text.layers)]
    units.append(_unit("norm", text.norm))
    if not tied:
        units.append(_unit("head", head))
    units.append(_unit("seg_projector", model.seg_projector))
    sam2 = tuple(m for m in (model.grounding, model.high_resolution) if m is not None)
    units.append(Unit("sam2", sam2, (), encodes=True, may_wait=False))
    return units


def has_tied_tables(model: Sa2VAModel) -> bool:
    """Whether the head's table is the embedding's."""
    core = _core(model)
    tables = {id(p) for p in core.get_input_embeddings().parameters()}
    return any(id(p) in tables for p in core.get_output_embeddings().parameters())


def _core(model: Sa2VAModel) -> nn.Module:
    """The InternVLForConditionalGeneration inside peft's wrapper."""
    inner = model.mllm.model
    return inner.get_base_model() if hasattr(inner, "peft_config") else inner


def _unit(name: str, *modules: nn.Module, encodes: bool = False, may_wait: bool = True) -> Unit:
    return Unit(name, modules, modules, encodes, may_wait)
