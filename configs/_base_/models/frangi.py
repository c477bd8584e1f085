# Frangi's vesselness (scikit-image): no weights, no training. Scales in px of image_size; they and
# the percentile were chosen on 20 validation frames of ARCADE.
processor = dict(
    tokenizer=dict(type="byte_level"),  # phrases are checked with it; nothing is tokenised
    image_only=True,
    image_size=512,
)
model = dict(type="FrangiVesselness", sigmas=[3, 4, 5, 6, 8], percentile=97.0)
