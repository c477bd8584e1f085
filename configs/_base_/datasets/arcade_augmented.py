# ARCADE with augmentation for models that start from random weights: 400 frames are few. Geometry
# is resampled once; grey values, and what a detector does to them, each have their own chance.
_base_ = ["./arcade.py", "./grey_value_augmentation.py"]

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
            {{_base_._grey_values}},
            {{_base_._detector}},
        ],
    ),
)
val_dataloader = dict(batch_size=8)
test_dataloader = dict(batch_size=8)
