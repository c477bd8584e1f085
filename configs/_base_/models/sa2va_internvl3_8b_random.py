# The 8B model at its true size with random weights, for measuring memory and speed.
_base_ = ["./sa2va_internvl3_8b.py"]

processor = dict(tokenizer=dict(_delete_=True, type="byte_level"))
model = dict(
    mllm=dict(
        pretrained=None,
        config=dict(
            tie_word_embeddings=False,
            text_config=dict(
                vocab_size=151674,
                hidden_size=3584,
                intermediate_size=18944,
                num_hidden_layers=28,
                num_attention_heads=28,
                num_key_value_heads=4,
                max_position_embeddings=32768,
                rope_parameters=dict(rope_type="default", rope_theta=1000000.0),
            ),
            vision_config=dict(
                image_size=[448, 448],
                patch_size=[14, 14],
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=24,
                num_attention_heads=16,
                attention_bias=True,
            ),
        ),
    ),
    grounding=dict(
        pretrained=None,
        config=dict(
            vision_config=dict(
                model_type="sam2_vision_model",
                backbone_config=dict(
                    model_type="sam2_hiera_det_model",
                    hidden_size=144,
                    num_attention_heads=2,
                    blocks_per_stage=[2, 6, 36, 4],
                    embed_dim_per_stage=[144, 288, 576, 1152],
                    num_attention_heads_per_stage=[2, 4, 8, 16],
                    window_size_per_stage=[8, 4, 16, 8],
                    global_attention_blocks=[23, 33, 43],
                    window_positional_embedding_background_size=[7, 7],
                ),
                backbone_channel_list=[1152, 576, 288, 144],
            ),
        ),
    ),
)
