# Frangi's filter on ARCADE frames.
#   python tools/test.py projects/sa2va/configs/baselines/frangi_arcade.py --checkpoint none
_base_ = [
    "../../../../configs/_base_/models/frangi.py",
    "../../../../configs/_base_/datasets/arcade.py",
    "../../../../configs/_base_/runtime.py",
]
