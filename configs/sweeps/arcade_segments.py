# ARCADE, 25 segments by name: the small model against a U-Net with a channel for each phrase.
#   export ARCADE_ROOT=<folder with train, val, test>
#   python tools/train.py projects/sa2va/configs/pretraining/synthetic_small.py
#   python tools/sweep.py configs/sweeps/arcade_segments.py --jobs 2
_configs = "../../projects/sa2va/configs"
rows = {
    "unet": {"config": f"{_configs}/baselines/unet_arcade_segments.py"},
    "sa2va_small": {"config": f"{_configs}/sa2va_arcade_segments_small.py"},
    "sa2va_small_pretrained": {
        "config": f"{_configs}/sa2va_arcade_segments_small.py",
        "options": {
            # Not its language model, which has other tokens, nor its head, which reads no prompt.
            "init_from": {
                "checkpoint": "work_dirs/synthetic_small/iter_1500.pth",
                "parts": ["SAM2 image encoder", "SAM2 mask decoder"],
            }
        },
    },
}
seeds = [0, 1, 2]
metrics = [
    "segment_dice_over_phrases",
    "segment_dice_over_pairs",
    "segment_false_positive_rate",
    "segment_miss_rate",
]
baseline = "unet"
