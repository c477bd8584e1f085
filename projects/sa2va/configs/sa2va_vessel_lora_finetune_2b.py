# InternVL3-2B + SAM2-L, LoRA, SAM2 input 512.
#   python tools/train.py projects/sa2va/configs/sa2va_vessel_lora_finetune_2b.py
# Its memory was not measured; tools/preflight.py works it out.
_base_ = ["./sa2va_vessel_finetune_2b.py"]

processor = dict(image_size=512)
