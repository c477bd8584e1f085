# InternVL3-8B + SAM2-L, LoRA, SAM2 input 1024.
#   python tools/train.py projects/sa2va/configs/sa2va_vessel_finetune.py
#   bash tools/dist.sh train projects/sa2va/configs/sa2va_vessel_finetune.py 4
# Peak a card, batch 1 (benchmarks/README.md): one card 18.6 GiB; four cards: DDP 19.3, ZeRO-2 with
# offload 18.5, FSDP2 8.4, ZeRO-3 with offload 6.3; LoRA r=128 under ZeRO-2 18.8.
_base_ = [
    "../../../configs/_base_/models/sa2va_internvl3_8b.py",
    "../../../configs/_base_/datasets/vessel.py",
    "../../../configs/_base_/schedules/lora_adamw.py",
    "../../../configs/_base_/runtime.py",
]

processor = dict(image_size=1024)
