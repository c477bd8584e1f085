# InternVL3-8B + SAM2-L, bf16 frozen weights, LoRA, token rows, mask decoder in float32.
# `pretrained` takes a hub id or a local folder in transformers' layout.

processor = dict(
    tokenizer=dict(type="pretrained"),  # path: that of model.mllm.pretrained
    tile_size=448,
    tokens_per_tile=256,
    min_tiles=1,
    max_tiles=1,  # an angiogram needs one tile to find [SEG]; SAM2 sees the full frame
    image_size=1024,
)
model = dict(
    type="Sa2VAModel",
    answer_mode="forced",
    autocast="bfloat16",
    mllm=dict(
        type="InternVLAdapter",
        pretrained="OpenGVLab/InternVL3-8B-hf",
        dtype="bfloat16",
        lora=dict(r=64, lora_alpha=128, lora_dropout=0.05),
        train_token_rows=True,
        train_projector=True,
        gradient_checkpointing=True,
    ),
    grounding=dict(
        type="Sam2Adapter",
        pretrained="facebook/sam2-hiera-large",
        dtype="bfloat16",
        train_mask_decoder=True,
    ),
    mask_loss=dict(type="MaskLoss", ce_weight=2.0, dice_weight=0.5, supervision="upsample"),
)
