# Pretrains the image encoder of the small model on ARCADE's training frames; labels are not read.
#   python tools/train.py projects/sa2va/configs/pretraining/masked_image_arcade_small.py
_base_ = [
    "../../../../configs/_base_/models/masked_image_small.py",
    "../../../../configs/_base_/datasets/arcade_augmented.py",
    "../../../../configs/_base_/schedules/small_adamw.py",
    "../../../../configs/_base_/runtime.py",
]

optim_wrapper = dict(paramwise_cfg=None)  # there is no language model
val_evaluator = dict(_delete_=True, type="ReconstructionMetric")
custom_hooks = [
    dict(type="WeightEMAHook", decay=0.998),
    dict(type="ReconstructionPictures", frames=4),
]
default_hooks = dict(
    checkpoint=dict(interval=500, save_best="reconstruction/l1", rule="less"),
    logger=dict(interval=25),
)
