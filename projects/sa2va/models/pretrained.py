"""A whole Sa2VA as the start of a model: released, or exported by tools/convert.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from projects.sa2va.errors import CheckpointError, ConfigError, SetupError, listing
from projects.sa2va.processing import Sa2VAProcessor
from projects.sa2va.weights.base import check_part, part_row, read_part, shapes_of
from projects.sa2va.weights.layouts import Source, open_source
from projects.sa2va.weights.parts import EMBEDDING
from projects.sa2va.weights.report import PartRow

from .building import locate

# Folders inside a native export, whose top is an InternVL in transformers' layout.
SAM2_FOLDER, PROJECTOR_FOLDER = "sam2", "seg_projector"
_PREFIX = "seg_projector."


class Sa2VAWeights:
    """Where the three parts of a whole Sa2VA are.

    Args:
        pretrained: hub id or local folder.

    Raises:
        SetupError: it is nowhere, or holds only a part.
    """

    def __init__(self, pretrained: str) -> None:
        what = "a released Sa2VA, or an export of tools/convert.py --to native"
        self.folder = locate(pretrained, "model.pretrained", what)
        source = open_source(self.folder)
        layout = source.layout
        self._rows = shapes_of(source).get(f"{EMBEDDING}.weight", (None,))[0]
        if layout.name == "sa2va":
            self.grounding = self.projector = self.folder
            return
        self.grounding = self.folder / SAM2_FOLDER
        self.projector = self.folder / PROJECTOR_FOLDER
        if not (self.grounding.is_dir() and self.projector.is_dir()):
            raise SetupError(
                found=f"{layout.what} in '{self.folder}' (model.pretrained)",
                expected=what,
                fix="set model.mllm.pretrained or model.grounding.pretrained to a base model, and "
                "--checkpoint or load_from to a training checkpoint",
            )

    def check_vocabulary(self, processor: Sa2VAProcessor) -> None:
        """Raises CheckpointError when tokenizer and tables of a trained Sa2VA do not fit.

        A base model's tables may grow; here the new rows, [SEG] among them, would be untrained.
        """
        short = self._rows is not None and self._rows <= max(processor.added_token_ids)
        if processor.new_tokens or short:
            found = f"no {listing(processor.new_tokens)}" if processor.new_tokens else "more tokens"
            raise CheckpointError(
                found=f"the tokenizer has {found} ({processor.vocab_size} tokens in all), and "
                f"'{self.folder}' is a trained Sa2VA of {self._rows} rows",
                expected="the tokenizer that comes with the weights: new tokens would get "
                "untrained rows",
                fix="set processor.tokenizer.path to the folder of the weights, or copy their "
                "tokenizer files (tokenizer.json, tokenizer_config.json, ...) there",
            )

    def configs(
        self, mllm: dict[str, Any], grounding: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The adapters' configs with their weights filled in.

        Raises:
            ConfigError: they name weights of their own.
        """
        both = [
            f"model.{key}={config[key.split('.')[1]]!r}"
            for name, config in (("mllm", mllm), ("grounding", grounding))
            for key in (f"{name}.pretrained", f"{name}.config")
            if config.get(key.split(".")[1]) is not None and key != "grounding.config"
        ]
        if both:
            raise ConfigError(
                found=f"model.pretrained='{self.folder}' beside {listing(both)}",
                expected="one source of weights: a whole Sa2VA, or its parts",
                fix="set model.mllm.pretrained=None model.grounding.pretrained=None (and "
                "model.mllm.config=None), or model.pretrained=None",
            )
        return (
            {**mllm, "pretrained": str(self.folder)},
            {**grounding, "pretrained": str(self.grounding)},
        )

    def load_projector(self, projector: nn.Module) -> list[PartRow]:
        """Fills the [SEG] projector; gives its row of the report.

        Raises:
            CheckpointError: missing or differently shaped weights.
        """
        source: Source = open_source(self.projector)
        own = projector.state_dict()
        expected = {_PREFIX + name: tuple(tensor.shape) for name, tensor in own.items()}
        check_part(source, _PREFIX, expected, "the [SEG] projector")
        tensors = read_part(source, _PREFIX)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[_PREFIX + name])
        return [part_row(source, "[SEG] projector", list(tensors))]
