# COCO layout: <split>/images and <split>/annotations/<split>.json; all instances of a frame united
# under one phrase.
data_root = "data/coco"

train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="EpochSampler", shuffle=True),
    collate_fn=dict(type="sa2va_collate"),
    dataset=dict(
        type="CocoVesselDataset",
        ann_file="train/annotations/train.json",
        image_dir="train/images",
        phrase="blood vessel",
        mode="union",
        augment=dict(hflip=0.5, rotate=(-15, 15), scale=(0.8, 1.25), gamma=(0.8, 1.25)),
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="ExactSampler"),
    collate_fn=dict(type="sa2va_collate"),
    dataset=dict(
        type="CocoVesselDataset",
        ann_file="val/annotations/val.json",
        image_dir="val/images",
        phrase="blood vessel",
        mode="union",
        test_mode=True,
    ),
)
test_dataloader = dict(
    batch_size=4,
    num_workers=2,
    sampler=dict(type="ExactSampler"),
    collate_fn=dict(type="sa2va_collate"),
    dataset=dict(
        type="CocoVesselDataset",
        ann_file="test/annotations/test.json",
        image_dir="test/images",
        phrase="blood vessel",
        mode="union",
        test_mode=True,
    ),
)
