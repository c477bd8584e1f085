# Ablation of sa2va_vessel_finetune.py: the rows of the added tokens left as they were initialised.
_base_ = ["../sa2va_vessel_finetune.py"]

model = dict(mllm=dict(train_token_rows=False))
