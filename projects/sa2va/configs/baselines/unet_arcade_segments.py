# U-Net on coronary segments: a channel for each phrase of the data part; data,
# augmentation and averaged weights are those of sa2va_arcade_segments_small.py.
#   python tools/train.py projects/sa2va/configs/baselines/unet_arcade_segments.py
_base_ = [
    "../../../../configs/_base_/models/unet.py",
    "../../../../configs/_base_/datasets/arcade_segments_augmented.py",
    "../../../../configs/_base_/schedules/baseline_adamw.py",
    "../../../../configs/_base_/runtime.py",
]

env_cfg = dict(cudnn_benchmark=True)  # shapes hardly change
model = dict(
    autocast="bfloat16",
    classes=[
        "blood vessel",
        "proximal right coronary artery",
        "middle right coronary artery",
        "distal right coronary artery",
        "posterior descending artery",
        "left main coronary artery",
        "proximal left anterior descending artery",
        "middle left anterior descending artery",
        "apical left anterior descending artery",
        "first diagonal branch",
        "additional first diagonal branch",
        "second diagonal branch",
        "additional second diagonal branch",
        "proximal circumflex artery",
        "intermediate (ramus) artery",
        "first obtuse marginal branch",
        "distal circumflex artery",
        "left posterolateral branch",
        "additional left posterolateral branch a",
        "posterior descending artery from the circumflex",
        "posterolateral branch from the right coronary artery",
        "first posterolateral branch from the right coronary artery",
        "second posterolateral branch from the right coronary artery",
        "third posterolateral branch from the right coronary artery",
        "second obtuse marginal branch",
        "additional left posterolateral branch b",
        "right coronary artery",
        "right coronary tree",
        "left coronary tree",
        "left anterior descending artery",
        "left circumflex artery",
        "diagonal branches",
        "obtuse marginal branches",
    ],
)
custom_hooks = [dict(type="WeightEMAHook", decay=0.998)]
default_hooks = dict(
    checkpoint=dict(interval=250, save_best="vessel/segment_dice_over_phrases"),
    logger=dict(interval=25),
)
test_evaluator = dict(metric_set="fast")
