"""Precision of prediction: one word for the model, or one for each of its parts.

See docs/precision.md for what each word means. The order is: :meth:`Precision.before_build` changes
the config, the model is built and its checkpoint loaded (which checks that the base weights are
those of training), :meth:`Precision.apply` casts and quantizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from projects.sa2va.errors import ConfigError, suggest
from projects.sa2va.models import Sa2VAModel, SegmentationModel
from projects.sa2va.models.prediction_parts import PART_NAMES, PredictionPart, overflow
from projects.sa2va.models.quantization import (
    quantize_int8,
    quantize_linears,
    set_compute_dtype,
)
from projects.sa2va.versions import check_versions

CONFIG = "config"
_DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "int8": torch.bfloat16,
    "nf4": torch.bfloat16,
}
WORDS = (CONFIG, *_DTYPES)
_PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}
_EXAMPLES = "bf16, or llm=nf4,vit=bf16,sam2=fp32"


@dataclass(frozen=True)
class Precision:
    """Precision of each part, one of :data:`WORDS`; ``config`` leaves a part as the config has it.

    Attributes:
        llm: language model with embedding, head, LoRA, token rows and [SEG] projector.
        vit: vision encoder of the language model, with the projector behind it.
        sam2: SAM2.
    """

    llm: str = CONFIG
    vit: str = CONFIG
    sam2: str = CONFIG

    @property
    def is_config(self) -> bool:
        """Whether the model predicts as the config says."""
        return set(astuple(self)) == {CONFIG}

    @property
    def quantizes(self) -> bool:
        """Whether a part gets integers for weights."""
        return any(word in _PACKAGES for word in astuple(self))

    @property
    def merges_lora(self) -> bool:
        """Whether LoRA and token rows go into the weights, whatever ``merge_lora`` says."""
        return self.llm == "int8"

    def describe(self) -> str:
        """For logs: ``language model nf4, vision encoder bf16, SAM2 fp32``."""
        if self.is_config:
            return "as the config says"
        return ", ".join(f"{PART_NAMES[part]} {word}" for part, word in asdict(self).items())

    def as_dict(self) -> dict[str, str]:
        """For metrics.json: part to word."""
        return asdict(self)

    def before_build(self, cfg: Config) -> None:
        """Changes ``cfg.model`` so that what is built can have this precision.

        4 bits are built as such, and published weights that will be float32 are not rounded on
        loading. Random weights are drawn in the config's dtype: in another they would be others.

        Args:
            cfg: as ``load_config`` returns it; changed in place.

        Raises:
            ConfigError: not a model with these parts; flash-attn, and a part in float32.
            SetupError: a package is missing.
        """
        if self.is_config:
            return
        model = cfg.model
        if not issubclass(MODELS.get(model.type), Sa2VAModel):
            raise _no_parts(model.type)
        words = astuple(self)
        needed = sorted({_PACKAGES[word] for word in words if word in _PACKAGES})
        if needed:
            check_versions(also=needed)
        mllm, grounding = model.mllm, model.grounding
        if self.llm == "nf4" and mllm.get("train_language_model"):
            raise ConfigError(
                found="--precision llm=nf4 and model.mllm.train_language_model=True",
                expected="a frozen language model: it is packed before what was trained is loaded",
                fix="--precision llm=int8 (or llm=bf16), which go over trained weights",
            )
        if self.llm != CONFIG:
            mllm.quantization = "nf4" if self.llm == "nf4" else None
        if "fp32" in (self.llm, self.vit):
            _without_flash_attention(mllm)
        whole = model.get("pretrained") is not None
        if self.llm == "fp32" and (whole or mllm.get("pretrained") is not None):
            mllm.dtype = "float32"
        # In float16 too: by way of bfloat16 float32 weights would be rounded twice.
        if self.sam2 in ("fp32", "fp16") and (whole or grounding.get("pretrained") is not None):
            grounding.dtype = "float32"

    def apply(
        self,
        model: SegmentationModel,
        place: Callable[[nn.Module], None] | None = None,
        device: str = "cuda",
    ) -> None:
        """Casts and quantizes the parts of a loaded model, for good; it does not train any more.

        What trains stays float32 and is rounded by autocast, as in training; with ``fp32`` there
        is no autocast. int8 merges LoRA and token rows into the weights first.

        Args:
            model: built from a config that :meth:`before_build` saw, and loaded.
            place: moves a layer to its device, where it is merged and quantized, so that a card
                never holds more than the final state and one layer. None leaves it where it is.
            device: that computes: on a CPU that only emulates bfloat16, quantized weights are
                computed with in float32, which is many times faster.

        Raises:
            ConfigError: not a model with these parts; a layer that 4 bits do not fit; a weight
                that float16 cannot hold.
        """
        if self.is_config:
            return
        parts = model.prediction_parts()
        if not parts:
            raise _no_parts(model.kind)
        _check_built(self.llm, parts["llm"])
        for name, word in asdict(self).items():
            if word == CONFIG:
                continue
            dtype = _DTYPES[word]
            if word in _PACKAGES:
                if device == "cpu" and emulates(dtype):
                    dtype = torch.float32
                _quantize(name, word, parts[name], place or _stay, dtype)
            if name == "llm" and self.merges_lora:
                model.merge_lora()  # token rows: the layers have none any more
                parts = model.prediction_parts()
            _cast(name, parts[name], dtype)
            model.part_dtypes[name] = dtype


def parse_precision(spec: str | Mapping[str, str] | None) -> Precision:
    """Reads ``--precision`` or ``test_cfg.precision``.

    Args:
        spec: one of :data:`WORDS` for all parts, where ``int8`` and ``nf4`` are the language
            model's and the others bf16; ``part=word`` pairs with commas, or a dict of them, in
            which a part that is left out stays as the config has it; None is ``config``.

    Raises:
        ConfigError: an unknown part or word, or a part twice.
    """
    if spec is None:
        return Precision()
    if isinstance(spec, Mapping):
        return _of_pairs(list(spec.items()), dict(spec))
    spec = str(spec)
    if "=" in spec:
        pairs = [piece.partition("=") for piece in spec.split(",")]
        return _of_pairs([(part.strip(), word.strip()) for part, _, word in pairs], spec)
    _check(spec, WORDS, "precision", spec)
    if spec in _PACKAGES:
        return Precision(llm=spec, vit="bf16", sam2="bf16")
    return Precision(llm=spec, vit=spec, sam2=spec)


def _of_pairs(pairs: list[tuple[str, str]], spec: str | dict[str, str]) -> Precision:
    for part, word in pairs:
        _check(part, PART_NAMES, "part", spec)
        _check(word, WORDS, f"precision of {part}", spec)
    names = [part for part, _ in pairs]
    if len(set(names)) < len(names):
        raise ConfigError(
            found=f"--precision {spec!r}: a part twice",
            expected="each of " + ", ".join(PART_NAMES) + " at most once",
            fix=f"for example --precision {_EXAMPLES}",
        )
    return Precision(**dict(pairs))


def _check(value: Any, known: Mapping[str, Any] | tuple[str, ...], what: str, spec: Any) -> None:
    if value not in known:
        raise ConfigError(
            found=f"--precision {spec!r}: {what} {value!r}" + suggest(str(value), known),
            expected="one of " + ", ".join(known),
            fix=f"for example --precision {_EXAMPLES}",
        )


def _no_parts(kind: str) -> ConfigError:
    return ConfigError(
        found=f"a precision, and model.type={kind!r}",
        expected="a model with a language model, a vision encoder and SAM2",
        fix="leave out --precision (test_cfg.precision)",
    )


def _without_flash_attention(mllm: Any) -> None:
    """flash-attn knows half precision only, and both parts of the MLLM have one setting."""
    chosen = mllm.get("attn_implementation", "auto")
    if chosen == "flash_attention_2":
        raise ConfigError(
            found="a part in fp32 and model.mllm.attn_implementation='flash_attention_2'",
            expected="attention that can compute in float32",
            fix="--cfg-options model.mllm.attn_implementation=sdpa",
        )
    if chosen == "auto":
        mllm.attn_implementation = "sdpa"


def emulates(dtype: torch.dtype) -> bool:
    """Whether this machine's CPU has no instructions for ``dtype``.

    torch then converts value by value: convolutions take a hundred times as long as in float32.
    """
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype in supported and not supported[dtype]()


def _check_built(word: str, llm: PredictionPart) -> None:
    """Raises ValueError where the config did not go through :meth:`Precision.before_build`."""
    quantized = any(hasattr(m, "original") for layer in llm.layers for m in layer.modules())
    if word != CONFIG and quantized != (word == "nf4"):
        raise ValueError(f"llm={word}: Precision.before_build(cfg) before the model is built")


def _stay(module: nn.Module) -> None:
    """Leaves a layer where it is."""


def _quantize(
    name: str,
    word: str,
    part: PredictionPart,
    place: Callable[[nn.Module], None],
    dtype: torch.dtype,
) -> None:
    for layer in part.layers:
        place(layer)
        if name == "llm" and word == "nf4":  # since it was built; a float32 recipe computes so
            set_compute_dtype(layer, dtype)
            continue
        layer.requires_grad_(False)
        if word == "int8":
            _merge_and_quantize(layer, dtype)
            continue
        device = next(layer.parameters()).device
        key, fix = f"--precision {name}=nf4", f"--precision {name}=int8 or {name}=bf16"
        quantize_linears(layer, dtype, device, key=key, fix=fix)


def _merge_and_quantize(layer: nn.Module, dtype: torch.dtype) -> None:
    """int8 of all linear layers below ``layer``, LoRA in them, one after the other."""
    from peft.tuners.lora import LoraLayer

    for name, child in list(layer.named_modules()):
        if isinstance(child, LoraLayer):
            linear = child.get_base_layer().float()  # the sum is rounded once, to the integers
            child.merge()
            layer.set_submodule(name, linear)
            quantize_int8(linear, dtype)
        elif type(child) is nn.Linear and ".base_layer" not in name and ".lora_" not in name:
            quantize_int8(child, dtype)


def _cast(name: str, part: PredictionPart, dtype: torch.dtype) -> None:
    """Casts what is frozen, and all of it to float32."""
    for owner, own, tensor in _castable(part, everything=dtype is torch.float32):
        cast = tensor.data.to(dtype)
        if dtype is torch.float16 and not bool(cast.isfinite().all()):
            lost = int((~cast.isfinite()).sum())
            raise overflow(name, f"{lost:,} of {cast.numel():,} values of a weight ({own})")
        if isinstance(tensor, nn.Parameter):
            tensor.data = cast
        else:
            owner.register_buffer(own, cast)


def _castable(
    part: PredictionPart, everything: bool
) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    """Module, name and tensor of floating-point weights and of buffers that a checkpoint holds.

    Others (the frequencies of rotary embeddings) are float32 in every dtype of a model.
    """
    kept = {id(m) for whole in part.trained for m in whole.modules()}
    for module in part.modules:
        for owner in module.modules():
            if id(owner) in kept and not everything:
                continue
            named = [*owner.named_parameters(recurse=False)]
            named += [
                (own, buffer)
                for own, buffer in owner.named_buffers(recurse=False)
                if own not in owner._non_persistent_buffers_set
            ]
            for own, tensor in named:
                # Quantized weights are tensors of another class.
                plain = type(tensor) in (torch.Tensor, nn.Parameter)
                plain = plain and type(tensor.data) is torch.Tensor and tensor.is_floating_point()
                if plain and (everything or not tensor.requires_grad):
                    yield owner, own, tensor
