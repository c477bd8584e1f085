# Pretrains the image encoder of the tiny model on ARCADE's training frames; labels are not read.
#   python tools/train.py projects/sa2va/configs/pretraining/masked_image_arcade_tiny.py
# Then sa2va_arcade.py with init_from=dict(checkpoint=..., parts=["SAM2 image encoder"]).
_base_ = [
    "../../../../configs/_base_/models/masked_image_tiny.py",
    "../../../../configs/_base_/datasets/arcade.py",
    "../../../../configs/_base_/schedules/scratch_adamw.py",
    "../../../../configs/_base_/runtime.py",
]

train_dataloader = dict(batch_size=8)
val_dataloader = dict(batch_size=8)
val_evaluator = dict(_delete_=True, type="ReconstructionMetric")
custom_hooks = [dict(type="ReconstructionPictures", frames=4)]
default_hooks = dict(
    checkpoint=dict(save_best="reconstruction/l1", rule="less"), logger=dict(interval=25)
)
