# Ablation of sa2va_vessel_finetune.py: LoRA rank 128 instead of 64.
# Peak a card, four cards, ZeRO-2, batch 1 (benchmarks/README.md): 18.8 GiB.
_base_ = ["../sa2va_vessel_finetune.py"]

model = dict(mllm=dict(lora=dict(r=128, lora_alpha=256)))
