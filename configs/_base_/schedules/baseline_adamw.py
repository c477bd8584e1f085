# AdamW for convolutional networks from random weights: warm-up, then cosine; 3000 iterations.
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="PartwiseConstructor",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=100, end=3000),
]
train_cfg = dict(type="Sa2VATrainLoop", max_iters=3000, val_interval=250)
