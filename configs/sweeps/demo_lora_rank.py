# How much LoRA rank the demo needs: three ranks, two seeds, the threshold chosen on val.
#   make demo   (renders the frames), then
#   SYNTHETIC_ROOT=work_dirs/demo/data python tools/sweep.py configs/sweeps/demo_lora_rank.py
config = "../../projects/sa2va/configs/sa2va_demo.py"
rows = {
    "lora_r8": {},
    "lora_r2": {"options": {"model.mllm.lora.r": 2, "model.mllm.lora.lora_alpha": 4}},
    "no_decoder": {"options": {"model.grounding.train_mask_decoder": False}},
}
seeds = [0, 1]
tune = {"split": "val", "metric": "dice"}
metrics = ["dice", "cldice"]
baseline = "lora_r8"
