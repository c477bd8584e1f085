# The small model on ARCADE frames, from what pretraining/synthetic_small.py learnt without labels.
#   python tools/train.py projects/sa2va/configs/pretraining/synthetic_small.py
#   python tools/train.py projects/sa2va/configs/sa2va_arcade_small_pretrained.py
_base_ = ["./sa2va_arcade_small.py"]

init_from = dict(checkpoint="work_dirs/synthetic_small/iter_1500.pth", parts="all")
