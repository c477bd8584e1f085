# The tiny model on synthetic angiograms: what `make demo` trains and tests on a CPU.
#   python tools/train.py projects/sa2va/configs/sa2va_demo.py
_base_ = [
    "../../../configs/_base_/models/sa2va_tiny.py",
    "../../../configs/_base_/datasets/synthetic.py",
    "../../../configs/_base_/schedules/scratch_adamw.py",
    "../../../configs/_base_/runtime.py",
]

train_dataloader = dict(batch_size=4)
default_hooks = dict(checkpoint=dict(interval=100), logger=dict(interval=25))
