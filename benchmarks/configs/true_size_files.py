# A Sa2VA at true size from the files that benchmarks/load_true_size.py writes: for measuring.
#   export TRUE_SIZE_WEIGHTS=<its work dir>/released_8b
_base_ = [
    "../../configs/_base_/models/sa2va_released_8b.py",
    "../../configs/_base_/datasets/synthetic.py",
    "../../configs/_base_/schedules/lora_adamw.py",
    "../../configs/_base_/runtime.py",
]

model = dict(pretrained="{{$TRUE_SIZE_WEIGHTS:work_dirs/true_size/released_8b}}")
train_dataloader = dict(batch_size=1)
val_dataloader = dict(batch_size=1)
test_dataloader = dict(batch_size=1)
optim_wrapper = dict(accumulative_counts=1)
