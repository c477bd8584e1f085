# The small model on CHASE_DB1 (retinal photographs) at 1024, from random weights, on one card.
#   export CHASE_ROOT=<folder with images, masks>
#   python tools/train.py projects/sa2va/configs/sa2va_chase_small.py
_base_ = [
    "../../../configs/_base_/models/sa2va_small.py",
    "../../../configs/_base_/datasets/chase_db1.py",
    "../../../configs/_base_/schedules/small_adamw.py",
    "../../../configs/_base_/runtime.py",
]

env_cfg = dict(cudnn_benchmark=True)  # shapes hardly change
processor = dict(image_size=1024)
train_cfg = dict(max_iters=2000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=False, begin=200, end=2000),
]
val_cfg = None
val_evaluator = None
default_hooks = dict(checkpoint=dict(interval=500, save_best=None), logger=dict(interval=25))
