# U-Net on ARCADE: as many frames, augmentation and averaged weights of sa2va_arcade_small.py.
#   python tools/train.py projects/sa2va/configs/baselines/unet_arcade.py
_base_ = [
    "../../../../configs/_base_/models/unet.py",
    "../../../../configs/_base_/datasets/arcade_augmented.py",
    "../../../../configs/_base_/schedules/baseline_adamw.py",
    "../../../../configs/_base_/runtime.py",
]

env_cfg = dict(cudnn_benchmark=True)  # shapes hardly change
model = dict(autocast="bfloat16")
train_cfg = dict(max_iters=1500)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=100, end=1500),
]
custom_hooks = [dict(type="WeightEMAHook", decay=0.998)]
default_hooks = dict(checkpoint=dict(interval=250), logger=dict(interval=25))
