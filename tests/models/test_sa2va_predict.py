"""The joint model: predictions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.sa2va.errors import DataError
from projects.sa2va.models import Sa2VAModel
from projects.sa2va.models.grounding import Decoded

from .conftest import PHRASE, blob_masks, build, picture, predict_inputs


@pytest.fixture
def model() -> Sa2VAModel:
    """A model that a test may change."""
    return build()


def speak(model: Sa2VAModel, says: list[int]) -> None:
    """Makes greedy generation say ``says``, then <|im_end|>, whatever the weights are."""
    script = [*says, model.processor.eos_token_id]
    original = model.mllm.generate

    def generate(embeddings: Tensor, attention_mask: Tensor, max_new_tokens: int) -> Tensor:
        step = [0]

        def force(_module: nn.Module, _inputs: object, logits: Tensor) -> Tensor:
            token = script[min(step[0], len(script) - 1)]
            step[0] += 1
            return logits.index_fill(-1, torch.tensor([token], device=logits.device), 1e4)

        hook = model.mllm._core.get_output_embeddings().register_forward_hook(force)
        try:
            return original(embeddings, attention_mask, max_new_tokens)
        finally:
            hook.remove()

    model.mllm.generate = generate


def test_prediction_refuses_masks_and_meta(frozen_model) -> None:
    inputs = predict_inputs(frozen_model.processor, [picture(0)], [[PHRASE]])
    for extra in (dict(masks=[blob_masks(0, 1)]), dict(meta=[{}])):
        with pytest.raises(ValueError, match="never masks or meta"):
            frozen_model(inputs=inputs, mode="predict", **extra)
    with pytest.raises(ValueError, match="mode is 'tensor'"):
        frozen_model(inputs=inputs, mode="tensor")


def test_predictions_depend_on_the_inputs_only(frozen_model) -> None:
    images = [picture(0), picture(1, (40, 90))]
    inputs = predict_inputs(frozen_model.processor, images, [[PHRASE], ["artery"]])
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = frozen_model(inputs=inputs, mode="predict")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    second = frozen_model(inputs=inputs, mode="predict")
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.probabilities, other.probabilities)
    assert not any(p.probabilities.requires_grad for p in first)
    other = predict_inputs(frozen_model.processor, [picture(2), images[1]], [[PHRASE], ["artery"]])
    changed = frozen_model(inputs=other, mode="predict")
    assert not torch.equal(changed[0].probabilities, first[0].probabilities)
    phrase = predict_inputs(frozen_model.processor, images, [["catheter"], ["artery"]])
    changed = frozen_model(inputs=phrase, mode="predict")
    assert not torch.equal(changed[0].probabilities, first[0].probabilities)


@pytest.mark.parametrize("mode", ["forced", "generate"])
def test_mixed_sizes_and_phrases_equal_singles(mode: str) -> None:
    model = build(answer_mode=mode, max_new_tokens=6).eval()
    if mode == "generate":
        speak(model, model.processor.answer_ids()[:-1].tolist())
    images = [picture(0, (64, 64)), picture(1, (40, 90)), picture(2, (75, 31))]
    phrases = [[PHRASE], [], ["artery", "a long phrase about a catheter", PHRASE]]
    together = model(inputs=predict_inputs(model.processor, images, phrases), mode="predict")
    shapes = [tuple(p.probabilities.shape) for p in together]
    assert shapes == [(1, 64, 64), (0, 40, 90), (3, 75, 31)]
    for image, group, prediction in zip(images, phrases, together, strict=True):
        assert len(prediction.answers) == len(prediction.seg_emitted) == len(group)
        for row, phrase in enumerate(group):
            inputs = predict_inputs(model.processor, [image], [[phrase]])
            alone = model(inputs=inputs, mode="predict")[0]
            torch.testing.assert_close(
                prediction.probabilities[row], alone.probabilities[0], atol=1e-5, rtol=1e-4
            )
            assert prediction.answers[row] == alone.answers[0]


def test_several_tiles_an_image(model) -> None:
    """Wide images have more tiles; each must see its own."""
    model = build(processor=dict(max_tiles=3)).eval()
    images = [picture(0, (40, 120)), picture(1, (64, 64)), picture(2, (60, 120))]
    inputs = predict_inputs(model.processor, images, [[PHRASE], [PHRASE, "artery"], ["vein"]])
    assert inputs["tiles_per_image"] == [4, 1, 3]
    together = model(inputs=inputs, mode="predict")
    alone = model(inputs=predict_inputs(model.processor, images[2:], [["vein"]]), mode="predict")
    torch.testing.assert_close(
        together[2].probabilities, alone[0].probabilities, atol=1e-5, rtol=1e-4
    )


def test_no_phrase_at_all(frozen_model) -> None:
    inputs = predict_inputs(frozen_model.processor, [picture(0), picture(1, (40, 90))], [[], []])
    predictions = frozen_model(inputs=inputs, mode="predict")
    shapes = [tuple(p.probabilities.shape) for p in predictions]
    assert shapes == [(0, 64, 64), (0, 40, 90)]
    assert predictions[0].answers == predictions[0].seg_emitted == []


def test_an_image_is_encoded_once_whatever_its_phrases(
    frozen_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[int]] = {"tiles": [], "images": []}
    visual, encode = frozen_model.mllm.visual_tokens, frozen_model.grounding.encode
    monkeypatch.setattr(
        frozen_model.mllm, "visual_tokens", lambda x: seen["tiles"].append(len(x)) or visual(x)
    )
    monkeypatch.setattr(
        frozen_model.grounding, "encode", lambda x: seen["images"].append(len(x)) or encode(x)
    )
    phrases = [[PHRASE, "artery", "vein"], [PHRASE]]
    inputs = predict_inputs(frozen_model.processor, [picture(0), picture(1)], phrases)
    predictions = frozen_model(inputs=inputs, mode="predict")
    assert [len(p.answers) for p in predictions] == [3, 1]
    assert seen == {"tiles": [2], "images": [2]}


def test_forced_answer_is_the_template(frozen_model) -> None:
    inputs = predict_inputs(frozen_model.processor, [picture(0)], [[PHRASE]])
    prediction = frozen_model(inputs=inputs, mode="predict")[0]
    assert prediction.answers == ["Sure, [SEG].<|im_end|>"]
    assert prediction.seg_emitted == [True]
    probabilities = prediction.probabilities
    assert float(probabilities.min()) >= 0 and float(probabilities.max()) <= 1
    assert probabilities.device.type == "cpu" and float(probabilities.std()) > 0


def test_the_map_goes_through_the_input_size_to_the_original_size(
    frozen_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0)) * 5
    monkeypatch.setattr(
        frozen_model.grounding, "decode", lambda *_, **__: Decoded(logits, None, None)
    )
    inputs = predict_inputs(frozen_model.processor, [picture(0, (50, 33))], [[PHRASE]])
    prediction = frozen_model(inputs=inputs, mode="predict")[0]
    bilinear = dict(mode="bilinear", align_corners=False)
    full = F.interpolate(logits[None], (64, 64), **bilinear)
    expected = F.interpolate(full, (50, 33), **bilinear)[0].sigmoid()
    torch.testing.assert_close(prediction.probabilities, expected)


def test_generating_the_template_equals_forcing_it(model) -> None:
    model.eval()
    images = [picture(0), picture(1, (40, 90))]
    inputs = predict_inputs(model.processor, images, [[PHRASE, "the longer name"], ["artery"]])
    forced = model(inputs=inputs, mode="predict")
    speak(model, model.processor.answer_ids()[:-1].tolist())
    model.answer_mode = "generate"
    generated = model(inputs=inputs, mode="predict")
    for one, other in zip(forced, generated, strict=True):
        assert torch.equal(one.probabilities, other.probabilities)
        assert one.answers == other.answers and other.seg_emitted == one.seg_emitted


def test_without_seg_the_map_is_zero(model) -> None:
    model.eval().answer_mode = "generate"
    speak(model, model.processor.tokenizer.encode("It is the vessel."))
    inputs = predict_inputs(model.processor, [picture(0), picture(1, (40, 90))], [[PHRASE]] * 2)
    for prediction, size in zip(model(inputs=inputs, mode="predict"), inputs["sizes"], strict=True):
        assert prediction.seg_emitted == [False]
        assert prediction.answers == ["It is the vessel.<|im_end|>"]
        assert torch.equal(prediction.probabilities, torch.zeros(1, *size))


def test_a_batch_generates_what_singles_do() -> None:
    """What a random model says, with prompts of different lengths."""
    model = build(answer_mode="generate", max_new_tokens=8).eval()
    image, phrases = picture(0), ["a", "the left anterior descending artery of the heart", PHRASE]
    inputs = predict_inputs(model.processor, [image], [phrases])
    together = model(inputs=inputs, mode="predict")[0].answers
    alone = [
        model(inputs=predict_inputs(model.processor, [image], [[phrase]]), mode="predict")[0]
        for phrase in phrases
    ]
    assert together == [prediction.answers[0] for prediction in alone]
    assert len(set(together)) > 1


def test_answers_of_one_batch_end_each_for_itself(
    model: Sa2VAModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = model.eval().processor
    (it,) = processor.tokenizer.encode("It")
    end, pad = processor.eos_token_id, processor.pad_token_id
    rows = torch.tensor([[processor.seg_token_id, end, pad, pad], [it, it, it, it]])
    monkeypatch.setattr(model.mllm, "generate", lambda *_args: rows)
    model.answer_mode = "generate"
    inputs = predict_inputs(processor, [picture(0)], [[PHRASE, "artery"]])
    prediction = model(inputs=inputs, mode="predict")[0]
    assert prediction.answers == ["[SEG]<|im_end|>", "ItItItIt"]
    assert prediction.seg_emitted == [True, False]


def test_an_answer_that_never_ends_is_cut(model) -> None:
    model.eval().answer_mode, model.max_new_tokens = "generate", 5
    speak(model, model.processor.tokenizer.encode("It" * 50))
    inputs = predict_inputs(model.processor, [picture(0)], [[PHRASE]])
    prediction = model(inputs=inputs, mode="predict")[0]
    assert prediction.answers == ["It" * 5] and prediction.seg_emitted == [False]


def test_two_segs_in_one_answer_are_united(model) -> None:
    model.eval().answer_mode = "generate"
    seg = model.processor.seg_token_id
    maps: list[Tensor] = []
    decode = model.grounding.decode

    def spy(features: Any, prompts: Tensor, **asked: bool) -> Decoded:
        decoded = decode(features, prompts, **asked)
        maps.extend(decoded.logits)
        return decoded

    model.grounding.decode = spy
    speak(model, [seg, *model.processor.tokenizer.encode(" and"), seg])
    inputs = predict_inputs(model.processor, [picture(0)], [[PHRASE]])
    prediction = model(inputs=inputs, mode="predict")[0]
    assert len(maps) == 2 and not torch.equal(maps[0], maps[1])
    single = [model._to_original(m[None], [(64, 64)])[0] for m in maps]
    assert torch.equal(prediction.probabilities[0], torch.maximum(*single))


def test_a_map_does_not_depend_on_the_others_of_its_batch(model) -> None:
    logits = torch.randn(7, 16, 16, generator=torch.Generator().manual_seed(0))
    sizes = [(20, 30), (20, 30), (9, 9), (20, 30), (70, 40), (70, 40), (70, 40)]
    single = [model._to_original(m[None], [size])[0] for m, size in zip(logits, sizes, strict=True)]
    together = model._to_original(logits, sizes)
    assert [tuple(m.shape) for m in together] == sizes
    assert all(torch.equal(a, b) for a, b in zip(together, single, strict=True))
    assert model._to_original(logits[:0], []) == []


@pytest.mark.parametrize("trains", [False, True])
def test_frozen_half_precision_encoder_computes_in_its_own_dtype(model, trains) -> None:
    """On a card autocast would raise its norms to float32, only to round what follows."""
    model.grounding.train_image_encoder = trains
    seen = []
    model.grounding.model.vision_encoder.bfloat16().register_forward_pre_hook(
        lambda *_: seen.append(torch.is_autocast_enabled("cpu"))
    )
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        features = model.grounding.encode(torch.zeros(1, 3, 64, 64))
        assert torch.is_autocast_enabled("cpu")
    assert seen == [trains] and features.stride16.isfinite().all()


def test_seg_in_a_prompt_does_not_count(model) -> None:
    """The processor refuses such a phrase; a prompt made elsewhere must do no harm either."""
    with pytest.raises(DataError, match=r"\[SEG\]"):
        model.processor.prompt_ids("vessel [SEG]", 1)
    model.eval()
    inputs = predict_inputs(model.processor, [picture(0)], [[PHRASE]])
    prompt = inputs["prompts"][0][0]
    seg = torch.tensor([model.processor.seg_token_id])
    inputs["prompts"] = [[torch.cat([prompt[:-5], seg, prompt[-5:]])]]
    prompts: list[int] = []
    decode = model.grounding.decode
    model.grounding.decode = lambda f, p, **k: prompts.append(len(p)) or decode(f, p, **k)
    assert model(inputs=inputs, mode="predict")[0].seg_emitted == [True]
    assert prompts == [1]
    model.answer_mode = "generate"
    speak(model, model.processor.tokenizer.encode("It is."))
    prediction = model(inputs=inputs, mode="predict")[0]
    assert prediction.seg_emitted == [False] and float(prediction.probabilities.sum()) == 0
    # Decoded once for the other processes of ZeRO-3, and dropped.
    assert prompts == [1, 1]


def test_passes_give_the_same_maps_as_one(model) -> None:
    model.eval()
    phrases = [["artery", "vein", PHRASE], [PHRASE], ["stent", "artery"]]
    inputs = predict_inputs(model.processor, [picture(i) for i in range(3)], phrases)
    whole = model(inputs=inputs, mode="predict")
    rows: list[int] = []
    run = model.mllm.hidden_states
    model.mllm.hidden_states = lambda e, a: rows.append(len(e)) or run(e, a)
    model.max_phrases_per_pass = 4
    passes = model(inputs=inputs, mode="predict")
    assert rows == [4, 2]
    for one, other in zip(whole, passes, strict=True):
        assert one.answers == other.answers
        torch.testing.assert_close(one.probabilities, other.probabilities, atol=1e-5, rtol=0)


@pytest.mark.parametrize("phrase", ["<p>vessel</p>", "<vp>", "{phrase}", "Gefäß 血管", "a" * 200])
def test_any_other_phrase_is_predicted(frozen_model, phrase: str) -> None:
    inputs = predict_inputs(frozen_model.processor, [picture(0)], [[phrase]])
    prediction = frozen_model(inputs=inputs, mode="predict")[0]
    assert prediction.seg_emitted == [True] and bool(prediction.probabilities.isfinite().all())


def test_a_generated_image_token_does_no_harm(model) -> None:
    """An untrained head may prefer any token."""
    model.eval().answer_mode, model.max_new_tokens = "generate", 3
    model.mllm._core.get_output_embeddings().register_forward_hook(
        lambda _m, _i, out: out.index_fill(-1, torch.tensor([model.processor.image_token_id]), 1e4)
    )
    inputs = predict_inputs(model.processor, [picture(0)], [[PHRASE]])
    assert "<IMG_CONTEXT>" not in model(inputs=inputs, mode="predict")[0].answers[0]
