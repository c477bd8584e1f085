# InternVL3-2B with its language model frozen in 4 bits (QLoRA) + SAM2-L, SAM2 input 1024.
#   python tools/train.py projects/sa2va/configs/sa2va_vessel_finetune_2b_nf4.py
# Peak on one card, batch 1 (benchmarks/README.md): 4.3 GiB.
_base_ = ["./sa2va_vessel_finetune_2b.py"]

model = dict(mllm=dict(quantization="nf4"))
