# The tiny model on ARCADE frames: what `make demo-arcade` trains and tests.
#   export ARCADE_ROOT=<folder with train, val, test>
#   python tools/train.py projects/sa2va/configs/sa2va_arcade.py
_base_ = [
    "../../../configs/_base_/models/sa2va_tiny.py",
    "../../../configs/_base_/datasets/arcade.py",
    "../../../configs/_base_/schedules/scratch_adamw.py",
    "../../../configs/_base_/runtime.py",
]

train_dataloader = dict(batch_size=4)
train_cfg = dict(max_iters=1000, val_interval=250)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=50, end=1000),
]
default_hooks = dict(checkpoint=dict(interval=250), logger=dict(interval=25))
