# The same architecture at toy size, random weights, float32: trains on a CPU in minutes.
# Nothing is pretrained, so the image encoder trains too.
processor = dict(
    tokenizer=dict(type="byte_level"),
    tile_size=112,
    tokens_per_tile=16,
    min_tiles=1,
    max_tiles=1,
    image_size=256,
)
model = dict(
    type="Sa2VAModel",
    answer_mode="forced",
    autocast=None,
    mllm=dict(
        type="InternVLAdapter",
        dtype="float32",
        lora=dict(r=8, lora_alpha=16),
        config=dict(
            tie_word_embeddings=False,
            text_config=dict(
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=2048,
                initializer_range=0.15,  # a frozen random head of 0.02 cannot say anything
            ),
            vision_config=dict(
                image_size=[112, 112],
                patch_size=[14, 14],
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
            ),
        ),
    ),
    grounding=dict(
        type="Sam2Adapter",
        dtype="float32",
        train_mask_decoder=True,
        train_image_encoder=True,
        config=dict(
            vision_config=dict(
                model_type="sam2_vision_model",
                backbone_config=dict(
                    model_type="sam2_hiera_det_model",
                    hidden_size=32,
                    num_attention_heads=1,
                    blocks_per_stage=[1, 2, 3, 1],
                    embed_dim_per_stage=[32, 64, 128, 256],
                    num_attention_heads_per_stage=[1, 2, 4, 8],
                    window_size_per_stage=[8, 4, 8, 4],
                    global_attention_blocks=[5],
                    window_positional_embedding_background_size=[7, 7],
                ),
                backbone_channel_list=[256, 128, 64, 32],
                fpn_hidden_size=128,
            ),
            prompt_encoder_config=dict(hidden_size=128),
            mask_decoder_config=dict(
                hidden_size=128, mlp_dim=256, num_attention_heads=4, iou_head_hidden_dim=128
            ),
        ),
    ),
    mask_loss=dict(type="MaskLoss", ce_weight=2.0, dice_weight=0.5, supervision="upsample"),
)
