# DynUNet on ARCADE frames.
#   python tools/train.py projects/sa2va/configs/baselines/dynunet_arcade.py
_base_ = [
    "../../../../configs/_base_/models/dynunet.py",
    "../../../../configs/_base_/datasets/arcade.py",
    "../../../../configs/_base_/schedules/baseline_sgd.py",
    "../../../../configs/_base_/runtime.py",
]

train_dataloader = dict(batch_size=8, num_workers=8)
val_dataloader = dict(batch_size=8)
test_dataloader = dict(batch_size=8)
default_hooks = dict(checkpoint=dict(interval=250), logger=dict(interval=25))
