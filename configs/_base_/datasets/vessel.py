# Your own frames in the reference's fine-tune format: <split>/annotations.json + <split>/images.
data_root = "{{$VESSEL_ROOT:data/vessel}}"

train_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="EpochSampler", shuffle=True),
    collate_fn=dict(type="sa2va_collate"),
    dataset=dict(
        type="Sa2VAJsonDataset",
        ann_file="train/annotations.json",
        image_dir="train/images",
        augment=dict(hflip=0.5, rotate=(-15, 15), scale=(0.8, 1.25), gamma=(0.8, 1.25)),
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="ExactSampler"),
    collate_fn=dict(type="sa2va_collate"),
    dataset=dict(
        type="Sa2VAJsonDataset",
        ann_file="val/annotations.json",
        image_dir="val/images",
        test_mode=True,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    sampler=dict(type="ExactSampler"),
    collate_fn=dict(type="sa2va_collate"),
    dataset=dict(
        type="Sa2VAJsonDataset",
        ann_file="test/annotations.json",
        image_dir="test/images",
        test_mode=True,
    ),
)
