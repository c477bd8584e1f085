"""Builds our model with the weights of the reference's tiny model (shared/reference/F1_model)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.reference_parity import sam2_config
from projects.sa2va.models import Sa2VAModel

IMAGES = ("img_a", "img_b", "img_c")


def model_config(reference: Path, attention: str = "sdpa", **changes: object) -> dict:
    """Keyword arguments of Sa2VAModel with the sizes of the reference's tiny model."""
    released = json.loads((reference / "F1_model" / "config.json").read_text())
    llm, vit = released["llm_config"], released["vision_config"]
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {
        "autocast": None,
        "processor": {
            "tokenizer": {"type": "pretrained", "path": str(reference / "F1_tokenizer")},
            "reference_numerics": True,
            **changes.pop("processor", {}),
        },
        "mllm": {
            "type": "InternVLAdapter",
            "dtype": "float32",
            "attn_implementation": attention,
            "lora": None,
            "train_token_rows": False,
            "config": {
                "tie_word_embeddings": False,
                "downsample_ratio": released["downsample_ratio"],
                "text_config": {
                    **{key: llm[key] for key in keys},
                    "num_key_value_heads": llm["num_key_value_heads"],
                    "rms_norm_eps": llm["rms_norm_eps"],
                    "max_position_embeddings": llm["max_position_embeddings"],
                    "rope_parameters": {"rope_type": "default", "rope_theta": llm["rope_theta"]},
                },
                "vision_config": {
                    **{key: vit[key] for key in keys},
                    "image_size": [448, 448],
                    "patch_size": [14, 14],
                    "attention_bias": vit["qkv_bias"],
                    "layer_norm_eps": vit["layer_norm_eps"],
                },
            },
            **changes.pop("mllm", {}),
        },
        "grounding": {
            "type": "Sam2Adapter",
            "dtype": "float32",
            "attn_implementation": attention,
            "config": sam2_config(reference),
            **changes.pop("grounding", {}),
        },
        **changes,
    }


def build(reference: Path, attention: str = "sdpa", **changes: object) -> Sa2VAModel:
    """A model in eval mode with every weight from the reference."""
    model = Sa2VAModel(**model_config(reference, attention, **changes)).eval()
    left = load_reference(reference, model)
    assert all(".lora_" in name for name in left), "every other weight of ours has one in F1"
    return model


def load_reference(reference: Path, model: Sa2VAModel) -> list[str]:
    """Copies the released tensors into ``model``; returns the names of ours that got none."""
    released = load_file(reference / "F1_model" / "model.safetensors")
    table = json.loads((reference / "F1_model_keys.json").read_text())["keys"]
    llm = model.mllm._core
    targets = {"InternVLForConditionalGeneration": llm, "Sam2Model": model.grounding.model}
    own = {
        name: {key.replace(".base_layer", ""): value for key, value in target.state_dict().items()}
        for name, target in targets.items()
    }
    filled = set()
    with torch.no_grad():
        for key, entry in table.items():
            tensor = released[key].float()
            if key.startswith("text_hidden_fcs."):
                part = model.get_submodule("seg_projector." + key.split(".")[1])
                getattr(part, key.split(".")[-1]).copy_(tensor)
                continue
            state = own.get(entry["native_model"], {})
            pieces = tensor.chunk(len(entry["native_keys"])) if "split" in entry["op"] else None
            for index, name in enumerate(entry["native_keys"]):
                value = pieces[index] if pieces else tensor
                target = state[name]
                if entry["op"].startswith("row "):
                    target = target[int(entry["op"].split()[1])]
                target.copy_(value.reshape(target.shape))
                filled.add((entry["native_model"], name))
    return sorted(
        name for kind, state in own.items() for name in state if (kind, name) not in filled
    )


def training_parameters(reference: Path, model: Sa2VAModel) -> dict[str, nn.Parameter]:
    """Our parameter for the name of every parameter that the reference trains (F6_train)."""
    table = json.loads((reference / "F1_model_keys.json").read_text())["keys"]
    names = json.loads((reference / "F6_train" / "meta.json").read_text())["trainable_parameters"]
    core = model.mllm._core
    own = {
        "InternVLForConditionalGeneration": dict(core.named_parameters()),
        "Sam2Model": dict(model.grounding.model.named_parameters()),
    }
    adapters = dict(model.mllm.model.named_parameters())
    found = {}
    for name in names:
        if ".lora_" in name:
            short = name.split("base_model.model.model.")[1]
            found[name] = adapters[f"base_model.model.model.language_model.{short}"]
        elif ".embed_tokens." in name:
            found[name] = core.get_input_embeddings().weight
        elif ".lm_head." in name:
            found[name] = core.get_output_embeddings().weight
        elif name.startswith("text_hidden_fcs."):
            found[name] = model.seg_projector.get_parameter(name.removeprefix("text_hidden_fcs."))
        else:
            entry = table[name.removeprefix("mllm.model.")]
            (native,) = entry["native_keys"]
            found[name] = own[entry["native_model"]][native]
    return found


def load_trained(reference: Path, model: Sa2VAModel) -> None:
    """Copies LoRA and the trained token tables of F6_train into ``model``."""
    file = reference / "F6_train" / "lora_and_saved_modules.safetensors"
    own = training_parameters(reference, model)
    with torch.no_grad():
        for name, value in load_file(file).items():
            own[name].copy_(value.float())
