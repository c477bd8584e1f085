# nnU-Net's network by MONAI (DynUNet) with its deep supervision, from random weights.
_base_ = ["./unet.py"]

model = dict(
    network=dict(
        _delete_=True,
        type="DynUNet",
        kernel_size=[3, 3, 3, 3, 3, 3, 3],
        strides=[1, 2, 2, 2, 2, 2, 2],
        upsample_kernel_size=[2, 2, 2, 2, 2, 2],
        filters=[32, 64, 128, 256, 512, 512, 512],
        deep_supervision=True,
        deep_supr_num=4,
    ),
)
