# DynUNet on ARCADE: as many frames, augmentation and averaged weights of sa2va_arcade_small.py.
#   python tools/train.py projects/sa2va/configs/baselines/dynunet_arcade.py
_base_ = [
    "../../../../configs/_base_/models/dynunet.py",
    "../../../../configs/_base_/datasets/arcade_augmented.py",
    "../../../../configs/_base_/schedules/baseline_sgd.py",
    "../../../../configs/_base_/runtime.py",
]

env_cfg = dict(cudnn_benchmark=True)  # shapes hardly change
model = dict(autocast="bfloat16")
train_dataloader = dict(batch_size=8)
custom_hooks = [dict(type="WeightEMAHook", decay=0.998)]
default_hooks = dict(checkpoint=dict(interval=250), logger=dict(interval=25))
