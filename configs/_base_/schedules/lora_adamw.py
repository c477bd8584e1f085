# AdamW for LoRA, token rows, projectors and mask decoder; warm-up, then cosine to zero.
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="PartwiseConstructor",
    accumulative_counts=4,
    optimizer=dict(type="AdamW", lr=4e-5, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=200, end=4000),
]
train_cfg = dict(type="Sa2VATrainLoop", max_iters=4000, val_interval=500)
