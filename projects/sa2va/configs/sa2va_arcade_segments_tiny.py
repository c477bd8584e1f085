# The tiny model on coronary segments by name. It learns where a segment lies; to say that one is
# not there its frozen random language model is too small (docs/referring.md).
#   export ARCADE_ROOT=<folder with train, val, test>
#   python tools/train.py projects/sa2va/configs/sa2va_arcade_segments_tiny.py
_base_ = [
    "../../../configs/_base_/models/sa2va_tiny.py",
    "../../../configs/_base_/datasets/arcade_segments.py",
    "../../../configs/_base_/schedules/scratch_adamw.py",
    "../../../configs/_base_/runtime.py",
]

model = dict(answer_mode="choice")
train_dataloader = dict(batch_size=4)
train_cfg = dict(max_iters=2000, val_interval=500)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=100, end=2000),
]
default_hooks = dict(
    checkpoint=dict(interval=500, save_best="vessel/segment_dice_over_phrases"),
    logger=dict(interval=25),
)
test_evaluator = dict(metric_set="fast")
