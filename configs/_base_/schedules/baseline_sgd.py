# SGD as nnU-Net trains (momentum 0.99, decay 3e-5, clipped at 12), with warm-up, then cosine.
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="PartwiseConstructor",
    optimizer=dict(type="SGD", lr=1e-2, momentum=0.99, nesterov=True, weight_decay=3e-5),
    clip_grad=dict(max_norm=12.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=100, end=3000),
]
train_cfg = dict(type="Sa2VATrainLoop", max_iters=3000, val_interval=250)
