# The small model on coronary segments by name, on one card; to start from the vessels:
#   export ARCADE_ROOT=<folder with train, val, test>
#   python tools/train.py projects/sa2va/configs/sa2va_arcade_segments_small.py --cfg-options \
#       init_from.parts=all init_from.checkpoint=work_dirs/sa2va_arcade_small/iter_1500.pth
_base_ = [
    "../../../configs/_base_/models/sa2va_small.py",
    "../../../configs/_base_/datasets/arcade_segments_augmented.py",
    "../../../configs/_base_/schedules/small_adamw.py",
    "../../../configs/_base_/runtime.py",
]

env_cfg = dict(cudnn_benchmark=True)  # shapes hardly change
model = dict(answer_mode="choice")
train_cfg = dict(max_iters=3000, val_interval=1000)  # a validation asks 28 questions of a frame
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=False, begin=200, end=3000),
]
default_hooks = dict(
    checkpoint=dict(interval=500, save_best="vessel/segment_dice_over_phrases"),
    logger=dict(interval=25),
)
test_evaluator = dict(metric_set="fast")
