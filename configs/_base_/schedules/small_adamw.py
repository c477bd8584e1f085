# AdamW for the small model from random weights, and the average of its weights: 1500 iterations.
# The MLLM has little to learn here; convolutions take larger steps than transformers.
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="PartwiseConstructor",
    optimizer=dict(type="AdamW", lr=3e-4, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.05),
    paramwise_cfg=dict(
        lr_mult={
            "MLLM vision encoder": 0.3,
            "MLLM projector": 0.3,
            "MLLM embeddings": 0.3,
            "MLLM head": 0.3,
            "MLLM language model": 0.3,
            "high-resolution head": 3.0,
        }
    ),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=False, begin=200, end=1500),
]
custom_hooks = [dict(type="WeightEMAHook", decay=0.998)]
train_cfg = dict(type="Sa2VATrainLoop", max_iters=1500, val_interval=500)
