# Pretrains all of the small model on angiograms that are made while training, half of them over
# ARCADE's training frames with their vessels taken out; no labels of real frames are read.
#   python tools/train.py projects/sa2va/configs/pretraining/synthetic_small.py
# Then sa2va_arcade_small.py with init_from=dict(checkpoint=..., parts="all").
_base_ = [
    "../../../../configs/_base_/models/sa2va_small.py",
    "../../../../configs/_base_/datasets/synthetic_pretraining.py",
    "../../../../configs/_base_/schedules/small_adamw.py",
    "../../../../configs/_base_/runtime.py",
]

train_dataloader = dict(
    batch_size=16,
    num_workers=12,
    dataset=dict(background=dict(image_dir="train/images", share=0.5)),
)
val_dataloader = dict(batch_size=8)
default_hooks = dict(checkpoint=dict(interval=500), logger=dict(interval=25))
