# InternVL3-8B with its language model frozen in 4 bits (QLoRA) + SAM2-L, SAM2 input 1024.
#   python tools/train.py projects/sa2va/configs/sa2va_vessel_finetune_nf4.py
# Peak a card, batch 1 (benchmarks/README.md): one card 9.7 GiB, with AdamW8bit 8.5; four cards: DDP
# 10.3, ZeRO-2 10.0.
_base_ = ["./sa2va_vessel_finetune.py"]

model = dict(mllm=dict(quantization="nf4"))
