"""All weights of a joint model as one mapping, with or without what was trained beside them.

LoRA is merged as peft does it, but the sum is rounded once, in the dtype that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from projects.sa2va.errors import ConfigError, listing
from projects.sa2va.models import Sa2VAModel
from projects.sa2va.models.trained import our_names
from projects.sa2va.weights.parts import HEAD

from .foreign import is_tied

ADAPTER = (".lora_A.weight", ".lora_B.weight", ".token_rows")
"""Ends of the names of what peft adds to a model."""


class WholeWeights(Mapping[str, Tensor]):
    """All weights of a model under our names (``weights/tables.py``), computed when asked for.

    Args:
        model: the joint model.
        merge: whether LoRA and token rows are put into the weights. Without it they are left out,
            and the weights are those that LoRA stands on.
        dtype: dtype of the tensors; None leaves each in its own.
    """

    def __init__(self, model: Sa2VAModel, merge: bool, dtype: torch.dtype | None) -> None:
        if model.mllm.quantization is not None:
            raise ConfigError(
                found=f"a model whose base is in 4 bits ({model.mllm.quantization})",
                expected="the base in its own precision: 4-bit weights are no published format",
                fix="add --config CONFIG --cfg-options model.mllm.quantization=None",
            )
        _check_published(model)
        self._model, self._merge, self._dtype = model, merge, dtype
        self._names = our_names(model)
        self._own = {o: n for o, n in self._names.items() if not o.endswith(ADAPTER)}
        if is_tied(model):
            del self._own[f"{HEAD}.weight"]
        self._state = model.state_dict(keep_vars=True)
        self._unused = model.grounding.unused

    def __getitem__(self, ours: str) -> Tensor:
        if ours in self._unused:
            return self._cast(self._unused[ours])
        name = self._own[ours]
        tensor = self._state[name].detach()
        if self._merge:
            tensor = self._merged(ours, name, tensor)
        return self._cast(tensor).cpu().contiguous()

    def _merged(self, ours: str, name: str, tensor: Tensor) -> Tensor:
        layer, _, last = name.rpartition(".base_layer.")
        if last != "weight":
            return tensor
        module = self._model.get_submodule(layer)
        if hasattr(module, "get_delta_weight"):
            return tensor.float() + module.get_delta_weight("default").detach().float()
        rows = ours.removesuffix(".weight") + ".token_rows"
        own = self._names.get(rows)
        if own is None:
            return tensor
        table = tensor.clone()
        ids = self._model.processor.added_token_ids
        table[ids] = self._state[own].detach().to(table.dtype)
        return table

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype) if self._dtype and tensor.is_floating_point() else tensor

    def meta(self, ours: str) -> Tensor:
        """An empty tensor of the same shape and dtype."""
        tensor = self._unused[ours] if ours in self._unused else self._state[self._own[ours]]
        dtype = self._dtype if self._dtype and tensor.is_floating_point() else tensor.dtype
        return torch.empty(tensor.shape, dtype=dtype, device="meta")

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from self._unused

    def __len__(self) -> int:
        return len(self._own) + len(self._unused)


_SAM2_TOP_DOWN = [2, 3]


def _check_published(model: Sa2VAModel) -> None:
    """Raises ConfigError for a model whose masks the published code would draw otherwise."""
    sam2 = model.grounding.model.config
    ours = {
        "model.high_resolution": model.high_resolution is not None,
        "model.grounding.multimask=False": not getattr(model.grounding, "multimask", True),
        "model.grounding.config.vision_config.fpn_top_down_levels other than SAM2's": list(
            sam2.vision_config.fpn_top_down_levels
        )
        != _SAM2_TOP_DOWN,
        "{phrase} in processor.answer": model.processor.templates.answer_names_phrase,
    }
    found = [name for name, is_set in ours.items() if is_set]
    if found:
        raise ConfigError(
            found=f"a model with {listing(found)}, which the published code does not know",
            expected="SAM2's own masks, for a whole model that predicts elsewhere as it does here",
            fix="use --to trainable: --checkpoint and load_from of this project read it",
        )
