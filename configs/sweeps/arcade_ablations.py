# ARCADE, one phrase: what each part of the small model's recipe gives, from random weights.
#   export ARCADE_ROOT=<folder with train, val, test>
#   python tools/train.py projects/sa2va/configs/pretraining/masked_image_arcade_small.py
#   python tools/sweep.py configs/sweeps/arcade_ablations.py --jobs 4
config = "../../projects/sa2va/configs/sa2va_arcade_small.py"
_loss = "model.mask_loss"
_encoder = {
    "checkpoint": "work_dirs/masked_image_arcade_small/iter_1500.pth",
    "parts": ["SAM2 image encoder"],
}
_mllm = [f"MLLM {part}" for part in ("vision encoder", "projector", "embeddings", "head")]
_no_head = {
    "model.high_resolution": None,
    "optim_wrapper.paramwise_cfg": {
        "_delete_": True,
        "lr_mult": dict.fromkeys([*_mllm, "MLLM language model"], 0.3),
    },
}
_dynunet = "../../projects/sa2va/configs/baselines/dynunet_arcade.py"
_mild = {
    "train_dataloader.dataset.augment": {
        "hflip": 0.5,
        "rotate": (-15, 15),
        "scale": (0.8, 1.25),
        "gamma": (0.8, 1.25),
    }
}
_like_the_head = {
    "model.network.res_block": True,
    "optim_wrapper.optimizer": {
        "_delete_": True,
        "type": "AdamW",
        "lr": 9e-4,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "weight_decay": 0.05,
    },
    "optim_wrapper.clip_grad.max_norm": 1.0,
}
rows = {
    "recipe": {},
    "masked_image": {"options": {"init_from": _encoder}},
    "no_head": {"options": _no_head},
    "head_without_context": {"options": {"model.high_resolution.context": 4}},
    "head_half_as_wide": {"options": {"model.high_resolution.width": 16}},
    "head_stride1_half_as_wide": {
        "options": {"model.high_resolution.stride": 1, "model.high_resolution.width": 16}
    },
    "sam2_fpn": {"options": {"model.grounding.config.vision_config.fpn_top_down_levels": [2, 3]}},
    "three_masks": {"options": {"model.grounding.multimask": True}},
    "no_average": {"options": {"custom_hooks": []}},
    "mild_augmentation": {"options": _mild},
    "twice_as_long": {
        "options": {"train_cfg.max_iters": 3000, "param_scheduler.1.end": 3000},
    },
    "dynunet_mild_augmentation": {"config": _dynunet, "options": _mild},
    # The blocks and the optimiser of the head, at twice its resolution, without SAM2.
    "dynunet_like_the_head": {"config": _dynunet, "options": _like_the_head},
    "nearest_256": {"options": {f"{_loss}.supervision": "nearest", f"{_loss}.grid": 256}},
    "area_256": {"options": {f"{_loss}.supervision": "area", f"{_loss}.grid": 256}},
    "nearest_128_no_head": {"options": {**_no_head, f"{_loss}.supervision": "nearest"}},
    "cldice": {"options": {f"{_loss}.cldice_weight": 0.5}},
    "skeleton_recall": {
        "options": {
            f"{_loss}.skeleton_recall_weight": 1.0,
            "train_dataloader.dataset.skeletons": True,
        }
    },
}
seeds = [0]
tune = {"split": "val", "metric": "dice"}
metrics = ["dice", "cldice", "hd95"]
baseline = "recipe"
