# ARCADE with augmentation for models that start from random weights: 400 frames are few. Geometry
# is resampled once; grey values, and what a detector does to them, each have their own chance.
_base_ = ["./arcade.py"]

train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    dataset=dict(
        augment=[
            dict(
                hflip=0.5,
                rotate=(-30, 30),
                scale=(0.75, 1.35),
                shear=(-8, 8),
                shift=(-0.08, 0.08),
                elastic=(0, 5),
                p=0.7,
            ),
            dict(gamma=(0.6, 1.6), contrast=(0.65, 1.5), brightness=(0.75, 1.3), p=0.5),
            dict(low_resolution=(0.5, 1.0), blur=(0.3, 1.5), noise=(1, 10), p=0.2),
        ],
    ),
)
val_dataloader = dict(batch_size=8)
test_dataloader = dict(batch_size=8)
