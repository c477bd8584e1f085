# InternVL3-2B + SAM2-L.
_base_ = ["./sa2va_internvl3_8b.py"]

model = dict(mllm=dict(pretrained="OpenGVLab/InternVL3-2B-hf"))
