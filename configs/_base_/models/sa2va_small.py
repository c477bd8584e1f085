# The same architecture at 61 million parameters, random weights, all of them trained: learns from
# nothing on one card. Hiera has the sizes of SAM2's tiny one; unlike there, the FPN hands context
# down to its finest maps too, as nothing is pretrained that would have to fit.
processor = dict(
    tokenizer=dict(type="byte_level"),
    tile_size=224,
    tokens_per_tile=64,
    min_tiles=1,
    max_tiles=1,
    image_size=512,
)
model = dict(
    type="Sa2VAModel",
    answer_mode="forced",
    autocast="bfloat16",
    mllm=dict(
        type="InternVLAdapter",
        dtype="float32",
        lora=None,
        train_token_rows=False,
        train_language_model=True,
        train_vision_encoder=True,
        attn_implementation="sdpa",
        config=dict(
            tie_word_embeddings=False,
            text_config=dict(
                hidden_size=256,
                intermediate_size=1024,
                num_hidden_layers=4,
                num_attention_heads=8,
                num_key_value_heads=8,
                max_position_embeddings=4096,
            ),
            vision_config=dict(
                image_size=[224, 224],
                patch_size=[14, 14],
                hidden_size=256,
                intermediate_size=1024,
                num_hidden_layers=4,
                num_attention_heads=8,
            ),
        ),
    ),
    grounding=dict(
        type="Sam2Adapter",
        dtype="float32",
        train_mask_decoder=True,
        train_image_encoder=True,
        multimask=False,
        config=dict(
            vision_config=dict(
                model_type="sam2_vision_model",
                backbone_config=dict(
                    model_type="sam2_hiera_det_model",
                    hidden_size=96,
                    num_attention_heads=1,
                    blocks_per_stage=[1, 2, 7, 2],
                    embed_dim_per_stage=[96, 192, 384, 768],
                    num_attention_heads_per_stage=[1, 2, 4, 8],
                    window_size_per_stage=[8, 4, 16, 8],
                    global_attention_blocks=[5, 7, 9],
                    window_positional_embedding_background_size=[7, 7],
                ),
                backbone_channel_list=[768, 384, 192, 96],
                fpn_hidden_size=256,
                fpn_top_down_levels=[0, 1, 2, 3],
            ),
        ),
    ),
    high_resolution=dict(stride=2, width=32, context=32),
    mask_loss=dict(type="MaskLoss", ce_weight=1.0, dice_weight=1.0, supervision="upsample"),
)
