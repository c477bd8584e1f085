# Pretraining on angiograms that are made while training: no files, no labels, new ones every epoch.
# val and test are those of ARCADE, so that the transfer to real frames is seen all along. For real
# training frames as grounds (their labels are not read):
#   train_dataloader.dataset.background=dict(image_dir="train/images", share=0.5)
_base_ = ["./arcade.py"]

train_dataloader = dict(
    num_workers=4,
    dataset=dict(
        _delete_=True,
        type="SyntheticVesselDataset",
        frames=4000,
        size=512,
        phrase="blood vessel",
        augment=dict(hflip=0.5, rotate=(-15, 15), scale=(0.8, 1.25), gamma=(0.8, 1.25)),
    ),
)
