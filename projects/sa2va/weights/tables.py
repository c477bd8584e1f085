"""The tables: published names of weights, and ours.

"Ours" are the names of transformers' modules under the part's prefix: ``mllm.`` +
InternVLForConditionalGeneration, ``grounding.`` + Sam2VideoModel (of which Sam2Model, the image
model, is a part), ``seg_projector.``. Every rule works in both directions.

Sources: bytedance/Sa2VA (projects/sa2va/hf/models), OpenGVLab/InternVL (internvl_chat),
facebookresearch/sam2 (sam2/modeling), transformers 5.23 (models/internvl, models/sam2_video).
"""

from __future__ import annotations

from dataclasses import replace

from .key_map import KeyMap, Rule
from .tables_sam2 import MEMORY_REASON, SAM2_RULES

_VIT = "mllm.model.vision_tower"
_SAME = "same module, transformers' name"

INTERNVL_RULES = (
    Rule(
        "vision_model.embeddings.class_embedding",
        f"{_VIT}.embeddings.cls_token",
        "transformers follows BEiT's names in InternViT",
    ),
    Rule(
        "vision_model.embeddings.patch_embedding.{p}",
        f"{_VIT}.embeddings.patch_embeddings.projection.{{p}}",
        "transformers wraps the convolution",
    ),
    Rule(
        "vision_model.embeddings.position_embedding",
        f"{_VIT}.embeddings.position_embeddings",
        _SAME,
    ),
    Rule(
        "vision_model.encoder.layers.{i}.attn.qkv.{p}",
        tuple(f"{_VIT}.encoder.layer.{{i}}.attention.{x}_proj.{{p}}" for x in "qkv"),
        "one matrix for q, k and v in InternViT, three in transformers",
        "split",
    ),
    Rule(
        "vision_model.encoder.layers.{i}.attn.proj.{p}",
        f"{_VIT}.encoder.layer.{{i}}.attention.projection_layer.{{p}}",
        _SAME,
    ),
    Rule(
        "vision_model.encoder.layers.{i}.attn.q_norm.weight",
        f"{_VIT}.encoder.layer.{{i}}.attention.q_norm.weight",
        "only in InternViT-6B, with qk_normalization",
    ),
    Rule(
        "vision_model.encoder.layers.{i}.attn.k_norm.weight",
        f"{_VIT}.encoder.layer.{{i}}.attention.k_norm.weight",
        "only in InternViT-6B, with qk_normalization",
    ),
    Rule(
        "vision_model.encoder.layers.{i}.norm1.{p}",
        f"{_VIT}.encoder.layer.{{i}}.layernorm_before.{{p}}",
        _SAME,
    ),
    Rule(
        "vision_model.encoder.layers.{i}.norm2.{p}",
        f"{_VIT}.encoder.layer.{{i}}.layernorm_after.{{p}}",
        _SAME,
    ),
    Rule(
        "vision_model.encoder.layers.{i}.ls1",
        f"{_VIT}.encoder.layer.{{i}}.lambda_1",
        "layer scale after attention",
    ),
    Rule(
        "vision_model.encoder.layers.{i}.ls2",
        f"{_VIT}.encoder.layer.{{i}}.lambda_2",
        "layer scale after the MLP",
    ),
    Rule(
        "vision_model.encoder.layers.{i}.mlp.fc{j}.{p}",
        f"{_VIT}.encoder.layer.{{i}}.mlp.fc{{j}}.{{p}}",
        "same name, other prefix",
    ),
    Rule(
        "mlp1.0.{p}",
        "mllm.model.multi_modal_projector.layer_norm.{p}",
        "an nn.Sequential: 0 is the norm",
    ),
    Rule(
        "mlp1.1.{p}",
        "mllm.model.multi_modal_projector.linear_1.{p}",
        "an nn.Sequential: 1 is the first linear layer",
    ),
    Rule(
        "mlp1.3.{p}",
        "mllm.model.multi_modal_projector.linear_2.{p}",
        "an nn.Sequential: 2 is the GELU, 3 the second linear layer",
    ),
    Rule(
        "language_model.lm_head.weight",
        "mllm.lm_head.weight",
        "transformers keeps the head beside the model; absent where it is tied to the embedding",
    ),
    Rule(
        "language_model.model.{rest}",
        "mllm.model.language_model.{rest}",
        "Qwen2 itself has the same names in both",
    ),
)

# transformers up to 4.51 (and the -hf folders on the hub) named InternVL's parts without "model.".
INTERNVL_HUB_RULES = (
    Rule("language_model.lm_head.weight", "mllm.lm_head.weight", "as the hub's -hf folders"),
    Rule(
        "language_model.model.{rest}",
        "mllm.model.language_model.{rest}",
        "as the hub's -hf folders, which hold a Qwen2ForCausalLM",
    ),
    Rule("vision_tower.{rest}", "mllm.model.vision_tower.{rest}", "as the hub's -hf folders"),
    Rule(
        "multi_modal_projector.{rest}",
        "mllm.model.multi_modal_projector.{rest}",
        "as the hub's -hf folders",
    ),
)

INTERNVL_NATIVE_RULES = (
    Rule("lm_head.weight", "mllm.lm_head.weight", "as transformers 4.52 and later save it"),
    Rule("model.{rest}", "mllm.model.{rest}", "as transformers 4.52 and later save it"),
)

SAM2_NATIVE_RULES = (
    Rule("{rest}", "grounding.{rest}", "transformers' own names, Sam2Model or Sam2VideoModel"),
)

SEG_PROJECTOR_RULES = (
    Rule("text_hidden_fcs.0.{p}", "seg_projector.0.{p}", "the projector of [SEG], first layer"),
    Rule(
        "text_hidden_fcs.2.{p}",
        "seg_projector.2.{p}",
        "the projector of [SEG], second layer (1 is the ReLU; the reference's 3 is a Dropout(0))",
    ),
)


def _prefixed(rules: tuple[Rule, ...], prefix: str) -> tuple[Rule, ...]:
    return tuple(
        replace(
            rule,
            theirs=prefix + rule.theirs
            if isinstance(rule.theirs, str)
            else tuple(prefix + name for name in rule.theirs),
        )
        for rule in rules
    )


_SAM2_IN_SA2VA = _prefixed(SAM2_RULES, "grounding_encoder.sam2_model.")
_FUSER = "grounding_encoder.sam2_model.memory_encoder.fuser.layers.{i}"

INTERNVL_CHAT = KeyMap("InternVL as OpenGVLab publishes it", INTERNVL_RULES)
INTERNVL_HUB = KeyMap("InternVL as the hub's -hf folders", INTERNVL_HUB_RULES)
INTERNVL_NATIVE = KeyMap("InternVL in transformers' layout", INTERNVL_NATIVE_RULES)
SAM2_META = KeyMap("SAM2 as Meta publishes it", SAM2_RULES)
SAM2_NATIVE = KeyMap("SAM2 in transformers' layout", SAM2_NATIVE_RULES)
SA2VA_RELEASED = KeyMap(
    "Sa2VA as released",
    (
        *INTERNVL_RULES,
        *SEG_PROJECTOR_RULES,
        Rule(
            f"{_FUSER}.g_weight",
            "grounding.memory_encoder.memory_fuser.layers.{i}.scale",
            f"{MEMORY_REASON}; transformers renames 'gamma' at loading, so here it is g_weight",
        ),
        *_SAM2_IN_SA2VA,
    ),
)
NATIVE_PROJECTOR = KeyMap(
    "the [SEG] projector by itself",
    (Rule("seg_projector.{rest}", "seg_projector.{rest}", "our own name"),),
)

_PEFT = "mllm.model.language_model.base_model.model"
_UNTOUCHED = "peft keeps the untouched table beside its trained copy; the base has it"

# What the reference's training writes: its module names, with peft's wrappers in them.
REFERENCE_TRAINING = KeyMap(
    "a training checkpoint of the reference",
    (
        *(
            Rule(
                f"{_PEFT}.model.{{rest}}.lora_{x}.default.weight",
                f"mllm.model.language_model.{{rest}}.lora_{x}.weight",
                "LoRA on the language model",
            )
            for x in "AB"
        ),
        Rule(
            f"{_PEFT}.lm_head.modules_to_save.default.weight",
            "mllm.lm_head.weight",
            "modules_to_save: a trained copy of the whole head",
        ),
        Rule(
            f"{_PEFT}.model.embed_tokens.modules_to_save.default.weight",
            "mllm.model.language_model.embed_tokens.weight",
            "modules_to_save: a trained copy of the whole embedding",
        ),
        Rule(f"{_PEFT}.lm_head.original_module.weight", "", _UNTOUCHED, "ignore"),
        Rule(f"{_PEFT}.model.embed_tokens.original_module.weight", "", _UNTOUCHED, "ignore"),
        Rule(
            f"{_PEFT}.model.{{rest}}.base_layer.{{p}}",
            "mllm.model.language_model.{rest}.{p}",
            "frozen weights under LoRA, where a checkpoint holds them",
        ),
        Rule(f"{_PEFT}.lm_head.weight", "mllm.lm_head.weight", "a head that was not copied"),
        Rule(
            f"{_PEFT}.model.{{rest}}",
            "mllm.model.language_model.{rest}",
            "frozen weights beside LoRA, where a checkpoint holds them",
        ),
        *_prefixed(INTERNVL_RULES, "mllm.model."),
        *SEG_PROJECTOR_RULES,
        *_SAM2_IN_SA2VA,
    ),
)

_WRAPPED = "mllm.model.base_model.model"

# Our own training checkpoints: the names of Sa2VAModel, with peft's wrappers in them.
OUR_TRAINING = KeyMap(
    "a training checkpoint of this project",
    (
        *(
            Rule(
                f"{_WRAPPED}.{{rest}}.lora_{x}.default.weight",
                f"mllm.{{rest}}.lora_{x}.weight",
                "LoRA on the language model",
            )
            for x in "AB"
        ),
        Rule(
            f"{_WRAPPED}.{{rest}}.token_adapter.trainable_tokens_delta.default",
            "mllm.{rest}.token_rows",
            "rows of the added tokens, beside LoRA",
        ),
        Rule(
            f"{_WRAPPED}.{{rest}}.trainable_tokens_delta.default",
            "mllm.{rest}.token_rows",
            "rows of the added tokens, without LoRA",
        ),
        Rule(
            f"{_WRAPPED}.{{rest}}.token_adapter.base_layer.weight",
            "mllm.{rest}.weight",
            "the frozen table under its trained rows",
        ),
        Rule(
            f"{_WRAPPED}.{{rest}}.base_layer.{{p}}",
            "mllm.{rest}.{p}",
            "frozen weights under LoRA",
        ),
        Rule(f"{_WRAPPED}.{{rest}}", "mllm.{rest}", "weights beside LoRA"),
        Rule("mllm.model.{rest}", "mllm.{rest}", "a model without LoRA or token rows"),
        Rule("grounding.model.{rest}", "grounding.{rest}", "the adapter's attribute is 'model'"),
        Rule("seg_projector.{rest}", "seg_projector.{rest}", "our own name"),
        Rule("high_resolution.{rest}", "high_resolution.{rest}", "our own name"),
        Rule("network.{rest}", "network.{rest}", "the network of a baseline"),
        Rule("reconstruction_head.{rest}", "reconstruction_head.{rest}", "our own name"),
    ),
)

# A peft adapter folder, and the file beside it with what trained outside of peft.
PEFT_ADAPTER = KeyMap(
    "a peft adapter of ours",
    (
        *(
            Rule(
                f"base_model.model.{{rest}}.lora_{x}.weight",
                f"mllm.{{rest}}.lora_{x}.weight",
                "peft leaves the adapter's name out",
            )
            for x in "AB"
        ),
        Rule(
            "base_model.model.{rest}.token_adapter.trainable_tokens_delta",
            "mllm.{rest}.token_rows",
            "rows of the added tokens, beside LoRA",
        ),
        Rule(
            "base_model.model.{rest}.trainable_tokens_delta",
            "mllm.{rest}.token_rows",
            "rows of the added tokens, without LoRA",
        ),
    ),
)
