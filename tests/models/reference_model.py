"""Builds our model with the weights of the reference's tiny model (shared/reference/F1_model)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from projects.sa2va.models import Sa2VAModel

GOLDEN_ANSWER = "Sure, [SEG]."


def model_config(reference: Path, attention: str = "sdpa", **changes: object) -> dict:
    """Keyword arguments of Sa2VAModel with the sizes of the reference's tiny model."""
    released = json.loads((reference / "F1_model" / "config.json").read_text())
    llm, vit = released["llm_config"], released["vision_config"]
    sam = json.loads((reference / "F1_model_sam2_config.json").read_text())
    hiera, decoder = sam["hiera"], sam["mask_decoder"]
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {
        "autocast": None,
        "processor": {
            "tokenizer": {"type": "pretrained", "path": str(reference / "F1_tokenizer")},
            "grounding_norm": "released",
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
            "config": {
                "vision_config": {
                    "model_type": "sam2_vision_model",
                    "backbone_channel_list": sam["neck"]["backbone_channel_list"],
                    "backbone_config": {
                        "model_type": "sam2_hiera_det_model",
                        "hidden_size": hiera["embed_dim"],
                        "num_attention_heads": hiera["num_heads"],
                        "blocks_per_stage": hiera["stages"],
                        "embed_dim_per_stage": hiera["embed_dim_per_stage"],
                        "num_attention_heads_per_stage": hiera["num_heads_per_stage"],
                        "window_size_per_stage": hiera["window_spec"],
                        "global_attention_blocks": hiera["global_att_blocks"],
                    },
                },
                "mask_decoder_config": {"mlp_dim": decoder["transformer_mlp_dim"]},
            },
            **changes.pop("grounding", {}),
        },
        **changes,
    }


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
