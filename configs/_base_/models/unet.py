# The plain U-Net by MONAI (BasicUNet), instance norm, 7.8 million parameters from random weights.
processor = dict(
    tokenizer=dict(type="byte_level"),  # phrases are checked with it; nothing is tokenised
    image_only=True,
    image_size=512,
)
model = dict(
    type="SegmentationBaseline",
    classes=["blood vessel"],
    in_channels=1,  # angiograms are grey
    autocast=None,
    # MONAI's UNet, with residual units, draws through a single channel where there is one class,
    # and has no level at full resolution unless its first stride is 1.
    network=dict(type="BasicUNet", features=[32, 64, 128, 256, 512, 32]),
    loss=dict(type="DiceCELoss"),
)
