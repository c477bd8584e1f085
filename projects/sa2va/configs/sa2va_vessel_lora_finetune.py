# InternVL3-8B + SAM2-L, LoRA, SAM2 input 512.
#   export DEEPSPEED=deepspeed_zero3_offload
#   bash tools/dist.sh train projects/sa2va/configs/sa2va_vessel_lora_finetune.py 4
# Peak a card, batch 1 (benchmarks/README.md): one card 18.6 GiB; four cards: ZeRO-2 with offload
# 16.2, ZeRO-3 with offload 5.9.
_base_ = [
    "../../../configs/_base_/models/sa2va_internvl3_8b.py",
    "../../../configs/_base_/datasets/vessel.py",
    "../../../configs/_base_/schedules/lora_adamw.py",
    "../../../configs/_base_/runtime.py",
]

processor = dict(image_size=512)
