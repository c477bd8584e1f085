# Frangi's filter on synthetic angiograms.
#   python tools/test.py projects/sa2va/configs/baselines/frangi_synthetic.py --checkpoint none
_base_ = [
    "../../../../configs/_base_/models/frangi.py",
    "../../../../configs/_base_/datasets/synthetic.py",
    "../../../../configs/_base_/runtime.py",
]
