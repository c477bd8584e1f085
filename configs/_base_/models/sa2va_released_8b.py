# A released Sa2VA on InternVL3-8B: MLLM, SAM2-L and [SEG] projector from one folder or hub id.
_base_ = ["./sa2va_internvl3_8b.py"]

model = dict(
    pretrained="ByteDance/Sa2VA-InternVL3-8B",
    mllm=dict(pretrained=None),
    grounding=dict(pretrained=None),
)
