# Pretraining of the small model's image encoder: what sa2va_small.py says of it, and a head.
_base_ = ["./sa2va_small.py"]

processor = dict(image_only=True)
model = dict(
    _delete_=True,
    type="MaskedImageModel",
    autocast="bfloat16",
    grounding={{_base_.model.grounding}},
    patch_size=32,
    mask_ratio=0.6,
    noise=0.1,
)
