# InternVL3-2B + SAM2-L at true size with random weights, on synthetic angiograms: for measuring.
_base_ = [
    "../../configs/_base_/models/sa2va_internvl3_2b_random.py",
    "../../configs/_base_/datasets/synthetic.py",
    "../../configs/_base_/schedules/lora_adamw.py",
    "../../configs/_base_/runtime.py",
]

train_dataloader = dict(batch_size=1)
val_dataloader = dict(batch_size=1)
test_dataloader = dict(batch_size=1)
optim_wrapper = dict(accumulative_counts=1)
