"""The model of a config without data: same modules, names, shapes and dtypes, no memory.

Built on torch's meta device by the model's own classes, then given fake CPU tensors: on those
operations propagate shapes and dtypes, autocast and autograd work, and no value exists.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from projects.sa2va.models import Sa2VAModel
from projects.sa2va.processing import Sa2VAProcessor

from .nf4 import stand_in_for_linears
from .sizes import cached_tokenizer, internvl_sizes, sam2_sizes


def build_without_data(model: Mapping[str, Any]) -> Sa2VAModel:
    """Builds ``cfg.model`` on the meta device; nothing is downloaded, loaded or drawn.

    ``quantization`` is left out: :func:`give_fake_data` puts it in, because 4-bit weights have no
    form without data.

    Args:
        model: the config's ``model``.

    Raises:
        UserError: what building it would raise, or sizes that are not known.
    """
    plain = with_sizes(model)
    mllm, grounding = plain["mllm"], plain["grounding"]
    mllm |= {"quantization": None, "init_device": "meta"}
    grounding["init_device"] = "meta"
    if mllm.get("attn_implementation", "auto") != "eager":
        mllm["attn_implementation"] = "sdpa"  # flash-attn keeps the same tensors
    with torch.device("meta"):
        return MODELS.build(plain)


def with_sizes(model: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``cfg.model`` with sizes in place of weights: ``config`` for ``pretrained``.

    A tokenizer that is not on this machine is replaced by the byte-level one.

    Raises:
        UserError: sizes that are not known.
    """
    # Config dicts are shared with the caller's, and building writes into them.
    plain: dict[str, Any] = copy.deepcopy(
        model.to_dict() if hasattr(model, "to_dict") else dict(model)
    )
    mllm, grounding, processor = plain["mllm"], plain["grounding"], plain["processor"]
    whole = plain.pop("pretrained", None)
    mllm_key = "model.pretrained" if whole else "model.mllm.pretrained"
    sam2_key = "model.pretrained" if whole else "model.grounding.pretrained"
    source = whole or mllm.get("pretrained")
    tokenizer = processor["tokenizer"]
    if tokenizer.get("type") == "pretrained" and not cached_tokenizer(str(tokenizer.get("path"))):
        processor["tokenizer"] = {"type": "byte_level"}
    if source is not None:
        mllm["config"] = _grown(internvl_sizes(source, mllm_key), processor)
    mask_source = whole or grounding.get("pretrained")
    if mask_source is not None:
        grounding["config"] = sam2_sizes(mask_source, grounding.get("config"), sam2_key)
    mllm["pretrained"] = grounding["pretrained"] = None
    return plain


def _grown(sizes: dict[str, Any], processor: dict[str, Any]) -> dict[str, Any]:
    """With room for the added tokens, which building would add with values around the mean."""
    text = sizes["text_config"]
    built = Sa2VAProcessor(**processor)
    needed = max(built.vocab_size, max(built.added_token_ids) + 1)
    if processor["tokenizer"].get("type") != "pretrained":
        # A stand-in: published tables are as long as the published tokenizer.
        needed = max(needed, text["vocab_size"] + len(built.added_token_ids))
    text["vocab_size"] = max(text["vocab_size"], needed)
    sizes.pop("image_token_id", None)
    return sizes


def give_fake_data(model: Sa2VAModel, mode: FakeTensorMode, quantization: str | None) -> Sa2VAModel:
    """Gives ``model``, in place, fake CPU tensors for its meta tensors; returns it.

    Args:
        model: as :func:`build_without_data` made it.
        mode: mode that the fake tensors belong to.
        quantization: ``model.mllm.quantization``.
    """
    known: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            with mode:
                made = torch.empty_strided(
                    tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu"
                )
            if isinstance(tensor, nn.Parameter):
                made = nn.Parameter(made, requires_grad=tensor.requires_grad)
            known[id(tensor)] = made
        return known[id(tensor)]

    if quantization is not None:
        stand_in_for_linears(model)
    originals = []  # ids are unique only while their tensors live
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    originals.append(tensor)
                    tensors[name] = fake(tensor)
    return model
