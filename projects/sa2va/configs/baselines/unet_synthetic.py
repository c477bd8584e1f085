# U-Net on synthetic angiograms.
#   python tools/train.py projects/sa2va/configs/baselines/unet_synthetic.py
_base_ = [
    "../../../../configs/_base_/models/unet.py",
    "../../../../configs/_base_/datasets/synthetic.py",
    "../../../../configs/_base_/schedules/baseline_adamw.py",
    "../../../../configs/_base_/runtime.py",
]

train_dataloader = dict(batch_size=8, num_workers=8)
val_dataloader = dict(batch_size=8)
test_dataloader = dict(batch_size=8)
default_hooks = dict(checkpoint=dict(interval=250), logger=dict(interval=25))
