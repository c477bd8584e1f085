# A released Sa2VA, fine-tuned further on vessels; also the config for training checkpoints of the
# reference that started from it (load_from, --checkpoint, tools/convert.py).
#   bash tools/dist.sh train projects/sa2va/configs/sa2va_vessel_finetune_released.py 4
_base_ = [
    "../../../configs/_base_/models/sa2va_released_8b.py",
    "../../../configs/_base_/datasets/vessel.py",
    "../../../configs/_base_/schedules/lora_adamw.py",
    "../../../configs/_base_/runtime.py",
]

processor = dict(image_size=1024)
