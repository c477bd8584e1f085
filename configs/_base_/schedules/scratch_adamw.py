# AdamW for small models that start from random weights: 500 iterations.
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="PartwiseConstructor",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=50, end=500),
]
train_cfg = dict(type="Sa2VATrainLoop", max_iters=500, val_interval=100)
