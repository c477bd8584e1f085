# Ablation of sa2va_vessel_finetune.py: LoRA rank 16 instead of 64.
_base_ = ["../sa2va_vessel_finetune.py"]

model = dict(mllm=dict(lora=dict(r=16, lora_alpha=32)))
