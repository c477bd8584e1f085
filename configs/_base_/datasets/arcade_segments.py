# ARCADE (X-ray coronary angiograms): the tree, its 25 segments by name, groups of them, and what is
# not labelled. Group members are the names of the file's categories (SYNTAX numbers).
_base_ = ["./coco_vessel.py"]

data_root = "{{$ARCADE_ROOT:data/arcade/syntax}}"
_phrases = dict(
    _delete_=True,
    type="ReferringVesselDataset",
    phrase="blood vessel",
    exclude=["stenosis"],  # a category of the file that is never labelled
    groups={
        "right coronary artery": ["1", "2", "3"],
        "right coronary tree": ["1", "2", "3", "4", "16", "16a", "16b", "16c"],
        "left coronary tree": [
            *("5", "6", "7", "8", "9", "9a", "10", "10a", "11"),
            *("12", "12a", "12b", "13", "14", "14a", "14b", "15"),
        ],
        "left anterior descending artery": ["6", "7", "8"],
        "left circumflex artery": ["11", "13"],
        "diagonal branches": ["9", "9a", "10", "10a"],
        "obtuse marginal branches": ["12a", "12b"],
    },
)

train_dataloader = dict(
    dataset=dict(
        ann_file="train/annotations/train.json",
        image_dir="train/images",
        # Never a flip: a mirrored angiogram shows no anatomy that "left" or "right" could name.
        augment=dict(rotate=(-15, 15), scale=(0.8, 1.25), gamma=(0.8, 1.25)),
        **_phrases,
    ),
)
val_dataloader = dict(
    dataset=dict(
        ann_file="val/annotations/val.json",
        image_dir="val/images",
        ask=["segment"],
        absent=3,
        test_mode=True,
        **_phrases,
    ),
)
test_dataloader = dict(
    dataset=dict(
        ann_file="test/annotations/test.json",
        image_dir="test/images",
        absent="all",
        test_mode=True,
        **_phrases,
    ),
)
