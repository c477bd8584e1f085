# Segments of ARCADE with augmentation for models that start from random weights; never a flip.
_base_ = ["./arcade_segments.py", "./grey_value_augmentation.py"]

train_dataloader = dict(
    batch_size=8,
    num_workers=8,
    dataset=dict(
        augment=[
            dict(
                rotate=(-20, 20),
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
