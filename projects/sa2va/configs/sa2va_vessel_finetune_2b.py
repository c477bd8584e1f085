# InternVL3-2B + SAM2-L, LoRA, SAM2 input 1024.
#   python tools/train.py projects/sa2va/configs/sa2va_vessel_finetune_2b.py
# Peak on one card, batch 1 (benchmarks/README.md): 6.2 GiB. Several cards were not measured.
_base_ = [
    "../../../configs/_base_/models/sa2va_internvl3_2b.py",
    "../../../configs/_base_/datasets/vessel.py",
    "../../../configs/_base_/schedules/lora_adamw.py",
    "../../../configs/_base_/runtime.py",
]

processor = dict(image_size=1024)
