# Frangi's filter on your own frames.
#   python tools/test.py projects/sa2va/configs/baselines/frangi_vessel.py --checkpoint none
_base_ = [
    "../../../../configs/_base_/models/frangi.py",
    "../../../../configs/_base_/datasets/vessel.py",
    "../../../../configs/_base_/runtime.py",
]
