# CHASE_DB1 (colour fundus, two eyes of 14 children, 999 x 960): train 20 frames, test 8, by child.
# There are too few for a third split: the last weights are tested, at the config's threshold.
data_root = "{{$CHASE_ROOT:data/chase_db1}}"

_common = dict(
    type="FolderVesselDataset",
    phrase="blood vessel",
    patient=dict(type="regex", pattern=r"Image_(\d+)"),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="EpochSampler", shuffle=True),
    collate_fn=dict(type="sa2va_collate"),
    dataset=dict(
        image_dir="images/train",
        mask_dir="masks/train",
        augment=[
            dict(
                hflip=0.5,
                vflip=0.5,
                rotate=(-180, 180),
                scale=(0.8, 1.3),
                shear=(-8, 8),
                elastic=(0, 6),
                p=0.8,
            ),
            dict(gamma=(0.6, 1.6), contrast=(0.65, 1.5), brightness=(0.75, 1.3), p=0.5),
            dict(low_resolution=(0.5, 1.0), blur=(0.3, 1.5), noise=(1, 8), p=0.2),
        ],
        **_common,
    ),
)
test_dataloader = dict(
    batch_size=4,
    num_workers=2,
    sampler=dict(type="ExactSampler"),
    collate_fn=dict(type="sa2va_collate"),
    dataset=dict(image_dir="images/test", mask_dir="masks/test", test_mode=True, **_common),
)
