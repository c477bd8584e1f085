# Ablation of sa2va_vessel_finetune.py: the mask decoder frozen.
_base_ = ["../sa2va_vessel_finetune.py"]

model = dict(grounding=dict(train_mask_decoder=False))
