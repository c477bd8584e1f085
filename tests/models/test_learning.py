"""The tiny model learns: losses fall, four frames are learnt by heart, golden losses stay.

``python -m tests.models.test_learning`` writes the golden losses anew; see tests/golden/README.md.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from projects.sa2va.datasets.collate import sa2va_collate
from projects.sa2va.datasets.synthetic.render import render
from projects.sa2va.models import Prediction, Sa2VAModel

from .conftest import PHRASE, build, predict_inputs, total, train_batch, train_item

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "losses_tiny.json"
GOLDEN_STEPS = 20
ITERATIONS = 220
LEARNING_RATE = 3e-3


@dataclass
class Training:
    """Four frames of four patients, the model before and after, its losses step by step."""

    model: Sa2VAModel
    inputs: dict
    truth: list[Tensor]
    untrained: list[Prediction]
    trained: list[Prediction]
    history: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def training() -> Training:
    frames = [render(0, 64, patient=patient, frame=1) for patient in range(4)]
    images = [np.repeat(image[:, :, None], 3, axis=2) for image, _, _ in frames]
    truth = [torch.from_numpy(mask)[None] for _, mask, _ in frames]
    # Of an input of 128 px the decoder makes 32 x 32: as fine as the vessels of these frames need.
    model = build(
        processor=dict(image_size=128),
        # The frozen head must be able to say something: its logits are bounded by its weights.
        mllm=dict(
            lora=dict(r=4, lora_alpha=8), config=dict(text_config=dict(initializer_range=0.3))
        ),
    )
    items = [train_item(model.processor, *pair) for pair in zip(images, truth, strict=True)]
    batch = sa2va_collate(items)
    inputs = predict_inputs(model.processor, images, [[PHRASE]] * 4)
    untrained = model.eval()(inputs=inputs, mode="predict")
    parameters = [p for p in model.train().parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=ITERATIONS, pct_start=0.1
    )
    history = []
    for _ in range(ITERATIONS):
        losses = model(**batch, mode="loss")
        optimizer.zero_grad()
        total(losses).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    trained = model.eval()(inputs=inputs, mode="predict")
    curves = {name: np.array([step[name] for step in history]) for name in history[0]}
    return Training(model, inputs, truth, untrained, trained, curves)


def dice(prediction: Prediction, truth: Tensor) -> float:
    found = prediction.probabilities > 0.5
    return float(2 * (found & (truth > 0)).sum() / (found.sum() + truth.sum()))


def test_every_loss_falls(training: Training) -> None:
    for name, curve in training.history.items():
        assert curve[-10:].mean() < 0.2 * curve[:10].mean(), name


def test_four_frames_are_learnt_by_heart(training: Training) -> None:
    scores = [dice(p, t) for p, t in zip(training.trained, training.truth, strict=True)]
    before = [dice(p, t) for p, t in zip(training.untrained, training.truth, strict=True)]
    assert min(scores) > 0.9, scores
    assert max(before) < 0.3, before


def test_each_frame_got_its_own_mask(training: Training) -> None:
    """One map for all frames would score on none of the others."""
    for i, prediction in enumerate(training.trained):
        others = [dice(prediction, t) for j, t in enumerate(training.truth) if j != i]
        assert max(others) < 0.5, i


def test_the_answer_was_learnt_and_gives_the_map_of_the_forced_answer(training: Training) -> None:
    training.model.answer_mode = "generate"
    generated = training.model(inputs=training.inputs, mode="predict")
    training.model.answer_mode = "forced"
    for own, forced, start in zip(generated, training.trained, training.untrained, strict=True):
        assert own.answers == ["Sure, [SEG].<|im_end|>"] and own.seg_emitted == [True]
        assert torch.equal(own.probabilities, forced.probabilities)
        assert not torch.equal(own.probabilities, start.probabilities)


def golden_losses() -> list[dict[str, float]]:
    """Losses of 20 steps of AdamW: samples with 1, 2 and 0 masks, three image sizes."""
    model = build()
    batch = train_batch(model.processor, (1, 2, 0), [(64, 64), (50, 80), (90, 33)])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    history = []
    for _ in range(GOLDEN_STEPS):
        losses = model(**batch, mode="loss")
        optimizer.zero_grad()
        total(losses).backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    return history


def test_losses_are_the_golden_ones() -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    found = golden_losses()
    assert len(found) == len(golden["losses"]) == GOLDEN_STEPS
    for step, (own, expected) in enumerate(zip(found, golden["losses"], strict=True)):
        assert own == pytest.approx(expected, rel=golden["relative_tolerance"]), f"step {step}"


if __name__ == "__main__":
    content = {
        "what": "losses of 20 AdamW steps of the model of tests/models/conftest.py",
        "torch": torch.__version__.split("+")[0],
        "relative_tolerance": 1e-3,
        "losses": [{name: float(f"{x:.7g}") for name, x in row.items()} for row in golden_losses()],
    }
    GOLDEN.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {GOLDEN}")
