"""The table of SAM2 and SAM2.1: Meta's names of weights, and transformers' under ``grounding.``.

Sources: facebookresearch/sam2 (sam2/modeling), transformers 5.23 (models/sam2_video), whose
Sam2VideoModel holds the image model and the video memory.
"""

from __future__ import annotations

from dataclasses import replace

from .key_map import Rule

_SAME = "same module, transformers' name"
_TRUNK, _BACKBONE = "image_encoder.trunk", "grounding.vision_encoder.backbone"
_DECODER = "sam_mask_decoder"
MEMORY_REASON = "video memory: not used for a single image, kept for export"


def _attention(theirs: str, ours: str, reason: str) -> tuple[Rule, ...]:
    """SAM2's attention layer: transformers calls ``out_proj`` ``o_proj``."""
    return (
        Rule(f"{theirs}.out_proj.{{p}}", f"{ours}.o_proj.{{p}}", reason),
        *(
            Rule(f"{theirs}.{x}_proj.{{p}}", f"{ours}.{x}_proj.{{p}}", reason)
            for x in ("q", "k", "v")
        ),
    )


def _mlp(theirs: str, ours: str, layers: int) -> tuple[Rule, ...]:
    """SAM2's MLP: transformers takes the first and the last layer out of the list."""
    names = ["proj_in", *(f"layers.{i}" for i in range(layers - 2)), "proj_out"]
    return tuple(
        Rule(
            f"{theirs}.layers.{i}.{{p}}",
            f"{ours}.{name}.{{p}}",
            "transformers names the first and last layer of an MLP",
        )
        for i, name in enumerate(names)
    )


_BLOCK = "layers.{i}"
_TRANSFORMER = (
    *(
        rule
        for name in ("self_attn", "cross_attn_image_to_token", "cross_attn_token_to_image")
        for rule in _attention(
            f"{_DECODER}.transformer.{_BLOCK}.{name}",
            f"grounding.mask_decoder.transformer.{_BLOCK}.{name}",
            _SAME,
        )
    ),
    *_attention(
        f"{_DECODER}.transformer.final_attn_token_to_image",
        "grounding.mask_decoder.transformer.final_attn_token_to_image",
        _SAME,
    ),
    *_mlp(
        f"{_DECODER}.transformer.{_BLOCK}.mlp",
        f"grounding.mask_decoder.transformer.{_BLOCK}.mlp",
        layers=2,
    ),
    Rule(
        f"{_DECODER}.transformer.{_BLOCK}.norm{{j}}.{{p}}",
        f"grounding.mask_decoder.transformer.{_BLOCK}.layer_norm{{j}}.{{p}}",
        _SAME,
    ),
    Rule(
        f"{_DECODER}.transformer.norm_final_attn.{{p}}",
        "grounding.mask_decoder.transformer.layer_norm_final_attn.{p}",
        _SAME,
    ),
)

MEMORY_RULES = (
    Rule("maskmem_tpos_enc", "grounding.memory_temporal_positional_encoding", MEMORY_REASON),
    Rule("no_mem_pos_enc", "grounding.no_memory_positional_encoding", MEMORY_REASON),
    Rule("no_obj_ptr", "grounding.no_object_pointer", MEMORY_REASON),
    Rule(
        "no_obj_embed_spatial",
        "grounding.occlusion_spatial_embedding_parameter",
        f"{MEMORY_REASON}; SAM2.1 only",
    ),
    Rule(
        "obj_ptr_tpos_proj.{p}",
        "grounding.temporal_positional_encoding_projection_layer.{p}",
        f"{MEMORY_REASON}; SAM2.1 only",
    ),
    Rule("mask_downsample.{p}", "grounding.mask_downsample.{p}", MEMORY_REASON),
    *(
        replace(rule, reason=MEMORY_REASON)
        for rule in _mlp("obj_ptr_proj", "grounding.object_pointer_proj", layers=3)
    ),
    *(
        rule
        for name in ("self_attn", "cross_attn_image")
        for rule in _attention(
            f"memory_attention.{_BLOCK}.{name}",
            f"grounding.memory_attention.{_BLOCK}.{name}",
            MEMORY_REASON,
        )
    ),
    Rule(
        f"memory_attention.{_BLOCK}.norm{{j}}.{{p}}",
        f"grounding.memory_attention.{_BLOCK}.layer_norm{{j}}.{{p}}",
        MEMORY_REASON,
    ),
    Rule(
        f"memory_attention.{_BLOCK}.linear{{j}}.{{p}}",
        f"grounding.memory_attention.{_BLOCK}.linear{{j}}.{{p}}",
        MEMORY_REASON,
    ),
    Rule("memory_attention.norm.{p}", "grounding.memory_attention.layer_norm.{p}", MEMORY_REASON),
    # An nn.Sequential of convolution, norm, GELU, four times; then the last convolution.
    *(
        Rule(
            f"memory_encoder.mask_downsampler.encoder.{3 * level + offset}.{{p}}",
            f"grounding.memory_encoder.mask_downsampler.layers.{level}.{name}.{{p}}",
            MEMORY_REASON,
        )
        for level in range(4)
        for offset, name in enumerate(("conv", "layer_norm"))
    ),
    Rule(
        "memory_encoder.mask_downsampler.encoder.12.{p}",
        "grounding.memory_encoder.mask_downsampler.final_conv.{p}",
        MEMORY_REASON,
    ),
    Rule(
        "memory_encoder.fuser.layers.{i}.gamma",
        "grounding.memory_encoder.memory_fuser.layers.{i}.scale",
        MEMORY_REASON,
    ),
    *(
        Rule(
            f"memory_encoder.fuser.layers.{{i}}.{theirs}.{{p}}",
            f"grounding.memory_encoder.memory_fuser.layers.{{i}}.{ours}.{{p}}",
            MEMORY_REASON,
        )
        for theirs, ours in (
            ("dwconv", "depthwise_conv"),
            ("norm", "layer_norm"),
            ("pwconv1", "pointwise_conv1"),
            ("pwconv2", "pointwise_conv2"),
        )
    ),
    Rule(
        "memory_encoder.pix_feat_proj.{p}",
        "grounding.memory_encoder.feature_projection.{p}",
        MEMORY_REASON,
    ),
    Rule("memory_encoder.out_proj.{p}", "grounding.memory_encoder.projection.{p}", MEMORY_REASON),
)

SAM2_RULES = (
    Rule(f"{_TRUNK}.pos_embed", f"{_BACKBONE}.pos_embed", "same name"),
    Rule(f"{_TRUNK}.pos_embed_window", f"{_BACKBONE}.pos_embed_window", "same name"),
    Rule(f"{_TRUNK}.patch_embed.proj.{{p}}", f"{_BACKBONE}.patch_embed.projection.{{p}}", _SAME),
    Rule(
        f"{_TRUNK}.blocks.{{i}}.norm{{j}}.{{p}}",
        f"{_BACKBONE}.blocks.{{i}}.layer_norm{{j}}.{{p}}",
        _SAME,
    ),
    *_mlp(f"{_TRUNK}.blocks.{{i}}.mlp", f"{_BACKBONE}.blocks.{{i}}.mlp", layers=2),
    Rule(
        f"{_TRUNK}.blocks.{{i}}.{{rest}}",
        f"{_BACKBONE}.blocks.{{i}}.{{rest}}",
        "attn.qkv, attn.proj and the shortcut proj have the same names (qkv is not split here)",
    ),
    Rule(
        "image_encoder.neck.convs.{i}.conv.{p}",
        "grounding.vision_encoder.neck.convs.{i}.{p}",
        "SAM2 wraps each convolution in an nn.Sequential",
    ),
    *_TRANSFORMER,
    *_mlp(
        f"{_DECODER}.output_hypernetworks_mlps.{{i}}",
        "grounding.mask_decoder.output_hypernetworks_mlps.{i}",
        layers=3,
    ),
    *_mlp(f"{_DECODER}.iou_prediction_head", "grounding.mask_decoder.iou_prediction_head", 3),
    *_mlp(f"{_DECODER}.pred_obj_score_head", "grounding.mask_decoder.pred_obj_score_head", 3),
    *(
        Rule(
            f"{_DECODER}.output_upscaling.{index}.{{p}}",
            f"grounding.mask_decoder.{name}.{{p}}",
            "an nn.Sequential of transposed convolution, norm, GELU, transposed convolution",
        )
        for index, name in ((0, "upscale_conv1"), (1, "upscale_layer_norm"), (3, "upscale_conv2"))
    ),
    Rule(
        f"{_DECODER}.{{rest}}",
        "grounding.mask_decoder.{rest}",
        "tokens, conv_s0 and conv_s1 have the same names",
    ),
    Rule(
        "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        (
            "grounding.prompt_encoder.shared_embedding.positional_embedding",
            "grounding.shared_image_embedding.positional_embedding",
        ),
        "one Fourier basis in SAM2, held twice by transformers",
        "share",
    ),
    Rule(
        tuple(f"sam_prompt_encoder.point_embeddings.{k}.weight" for k in range(4)),
        "grounding.prompt_encoder.point_embed.weight",
        "four tables of one row (point in, point out, two box corners), one table in transformers",
        "stack",
    ),
    *(
        Rule(
            f"sam_prompt_encoder.mask_downscaling.{index}.{{p}}",
            f"grounding.prompt_encoder.mask_embed.{name}.{{p}}",
            "an nn.Sequential of convolution, norm, GELU, twice, and a last convolution",
        )
        for index, name in (
            (0, "conv1"),
            (1, "layer_norm1"),
            (3, "conv2"),
            (4, "layer_norm2"),
            (6, "conv3"),
        )
    ),
    Rule(
        "sam_prompt_encoder.{rest}",
        "grounding.prompt_encoder.{rest}",
        "not_a_point_embed and no_mask_embed have the same names",
    ),
    Rule("no_mem_embed", "grounding.no_memory_embedding", _SAME),
    *MEMORY_RULES,
)
