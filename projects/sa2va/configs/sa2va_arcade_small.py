# The small model on ARCADE frames, from random weights, on one card.
#   export ARCADE_ROOT=<folder with train, val, test>
#   python tools/train.py projects/sa2va/configs/sa2va_arcade_small.py
_base_ = [
    "../../../configs/_base_/models/sa2va_small.py",
    "../../../configs/_base_/datasets/arcade_augmented.py",
    "../../../configs/_base_/schedules/small_adamw.py",
    "../../../configs/_base_/runtime.py",
]

env_cfg = dict(cudnn_benchmark=True)  # shapes hardly change
default_hooks = dict(checkpoint=dict(interval=500), logger=dict(interval=25))
