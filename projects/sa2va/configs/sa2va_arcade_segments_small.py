# The small model on coronary segments by name, on one card. What one phrase does not need: a head
# that reads the prompt, a language model that learns as fast as the rest, names of few tokens, the
# name before its [SEG], and questions about one phrase, as a test asks them, more often than about
# several.
#   export ARCADE_ROOT=<folder with train, val, test>
#   python tools/train.py projects/sa2va/configs/sa2va_arcade_segments_small.py
_base_ = [
    "../../../configs/_base_/models/sa2va_small.py",
    "../../../configs/_base_/datasets/arcade_segments_augmented.py",
    "../../../configs/_base_/schedules/small_adamw.py",
    "../../../configs/_base_/runtime.py",
]

env_cfg = dict(cudnn_benchmark=True)  # shapes hardly change
_words = (
    "a additional anterior apical b branch branches circumflex descending diagonal distal first "
    "from intermediate left main marginal middle no none obtuse posterior posterolateral proximal "
    "right second third tree"
)
processor = dict(
    tokenizer=dict(words=[f" {word}" for word in _words.split()]),
    answer="Sure, {phrase}: [SEG].",
    absent_answer="Sure, {phrase}: none.",
    clauses=["the {phrase}: [SEG]", "the {phrase}: none"],
)
model = dict(answer_mode="choice", high_resolution=dict(prompted=True))
optim_wrapper = dict(
    paramwise_cfg=dict(
        lr_mult={
            "MLLM embeddings": 1.0,
            "MLLM head": 1.0,
            "MLLM language model": 1.0,
        }
    )
)
train_dataloader = dict(
    dataset=dict(
        max_phrases_per_sample=8,
        mix=dict(tree=0.5, segment=4.0, group=1.0, absent=2.0, several=0.5),
    )
)
train_cfg = dict(max_iters=3000, val_interval=1000)  # a validation asks nine questions of a frame
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=False, begin=200, end=3000),
]
default_hooks = dict(
    checkpoint=dict(interval=500, save_best="vessel/segment_dice_over_phrases"),
    logger=dict(interval=25),
)
test_evaluator = dict(metric_set="fast")
