# ARCADE, 25 segments by name: the small model against a U-Net with a channel for each phrase.
#   export ARCADE_ROOT=<folder with train, val, test>
#   python tools/sweep.py configs/sweeps/arcade_segments.py --jobs 2
_configs = "../../projects/sa2va/configs"
rows = {
    "unet": {"config": f"{_configs}/baselines/unet_arcade_segments.py"},
    "sa2va_small": {"config": f"{_configs}/sa2va_arcade_segments_small.py"},
}
seeds = [0, 1, 2]
metrics = ["segment_dice_over_phrases", "segment_dice_over_pairs"]
baseline = "unet"
