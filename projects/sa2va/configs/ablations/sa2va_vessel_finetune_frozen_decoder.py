# Ablation of sa2va_vessel_finetune.py: the mask decoder frozen.
# Peak on one card, batch 1 (benchmarks/README.md): 18.6 GiB.
_base_ = ["../sa2va_vessel_finetune.py"]

model = dict(grounding=dict(train_mask_decoder=False))
