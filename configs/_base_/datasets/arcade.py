# ARCADE (X-ray coronary angiograms): the segments of a frame united under one phrase.
_base_ = ["./coco_vessel.py"]

data_root = "{{$ARCADE_ROOT:data/arcade/syntax}}"
