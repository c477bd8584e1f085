# ARCADE, one phrase: the baselines and the small model, three seeds, thresholds chosen on val.
#   export ARCADE_ROOT=<folder with train, val, test>
#   python tools/train.py projects/sa2va/configs/pretraining/synthetic_small.py
#   python tools/sweep.py configs/sweeps/arcade_headline.py --jobs 4
_configs = "../../projects/sa2va/configs"
rows = {
    "unet": {"config": f"{_configs}/baselines/unet_arcade.py"},
    "dynunet": {"config": f"{_configs}/baselines/dynunet_arcade.py"},
    "sa2va_small": {"config": f"{_configs}/sa2va_arcade_small.py"},
    "sa2va_small_pretrained": {"config": f"{_configs}/sa2va_arcade_small_pretrained.py"},
}
seeds = [0, 1, 2]
tune = {"split": "val", "metric": "dice"}
metrics = ["dice", "cldice", "hd95"]
baseline = "dynunet"
