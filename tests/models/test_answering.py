"""Answers that are chosen, and the map of each phrase of a question about several."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from projects.sa2va.errors import ConfigError
from projects.sa2va.models import Sa2VAModel
from projects.sa2va.models.answering import first_difference

from .conftest import PHRASE, build, picture, predict_inputs
from .test_sa2va_predict import speak

PHRASES = ["artery", "left main coronary artery", "vein", PHRASE, "ramus", "stent", "wire", "a"]


def inputs_of(
    model: Sa2VAModel, images: list[np.ndarray], groups: list[list[tuple[str, ...]]]
) -> dict[str, Any]:
    """The model's part of a batch; each prompt asks for the phrases of one tuple."""
    inputs = predict_inputs(model.processor, images, [[] for _ in images])
    items = [
        model.processor.prediction_item(image, group)
        for image, group in zip(images, groups, strict=True)
    ]
    return {**inputs, **{key: [item[key] for item in items] for key in ("prompts", "asked")}}


def logits_after(model: Sa2VAModel, image: np.ndarray, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the token behind ``ids``, of these alone."""
    visual = model.mllm.visual_tokens(model.processor.tiles(image))
    hidden = model.mllm.hidden_states(model.mllm.embed(ids[None], visual), torch.ones(1, len(ids)))
    return model.mllm.logits(hidden[:, -1])[0].float()


@torch.no_grad()
def choose_alone(
    model: Sa2VAModel, image: np.ndarray, phrases: tuple[str, ...]
) -> tuple[list[bool], list[float]]:
    """The choice written out: one token after the other, nothing read ahead."""
    processor = model.processor
    prompt = processor.prediction_item(image, [phrases])["prompts"][0]
    flags: list[bool] = []
    presence = []
    for turn in range(len(phrases)):
        rest = [True] * (len(phrases) - turn - 1)
        yes = processor.answer_ids_for(phrases, [*flags, True, *rest])
        no = processor.answer_ids_for(phrases, [*flags, False, *rest])
        at = next(k for k in range(len(yes)) if yes[k] != no[k])
        chances = logits_after(model, image, torch.cat([prompt, yes[:at]])).log_softmax(0)
        both = chances[yes[at]], chances[no[at]]
        presence.append(float(both[0].exp() / (both[0].exp() + both[1].exp())))
        flags.append(bool(both[0] >= both[1]))
    return flags, presence


@pytest.fixture(scope="module")
def choosing() -> Sa2VAModel:
    """A random model whose choices fall both ways: its preference for one answer is taken out."""
    model = build(answer_mode="choice").eval()
    alone = [choose_alone(model, picture(0), (phrase,))[1][0] for phrase in PHRASES]
    several = choose_alone(model, picture(0), tuple(PHRASES[:5]))[1]
    tokens, shift = [], []
    for phrases, presence in ((PHRASES[:1], alone), (PHRASES[:2], several)):
        yes, no = (
            model.processor.answer_ids_for(phrases, [f] * len(phrases)) for f in (True, False)
        )
        tokens.append(int(yes[first_difference(yes, no)]))
        odds = np.array(presence)
        shift.append(-float(np.median(np.log(odds / (1 - odds)))))
    model.mllm._core.get_output_embeddings().register_forward_hook(
        lambda _m, _i, out: out.index_add(
            -1, torch.tensor(tokens), torch.tensor(shift).expand(*out.shape[:-1], 2)
        )
    )
    return model


def test_a_choice_is_the_likelier_first_token(choosing) -> None:
    images = [picture(0), picture(1, (40, 90))]
    groups = [[(phrase,) for phrase in PHRASES], [("vein",), ("a longer name of it",)]]
    together = choosing(inputs=inputs_of(choosing, images, groups), mode="predict")
    seen = set()
    for image, group, prediction in zip(images, groups, together, strict=True):
        for row, phrases in enumerate(group):
            (there,), (presence,) = choose_alone(choosing, image, phrases)
            assert prediction.presence[row] == pytest.approx(presence, abs=1e-5)
            assert prediction.seg_emitted[row] == there == bool(prediction.probabilities[row].any())
            text = "Sure, [SEG]." if there else f"There is no {phrases[0]} in this image."
            assert prediction.answers[row] == text + "<|im_end|>"
            seen.add(there)
    assert seen == {True, False}


@pytest.mark.parametrize("rank", [0, 2, -1])
def test_the_presence_threshold_moves_the_choice_and_nothing_else(
    choosing, monkeypatch, rank: int
) -> None:
    inputs = inputs_of(choosing, [picture(0)], [[(phrase,) for phrase in PHRASES]])
    usual = choosing(inputs=inputs, mode="predict")[0]
    threshold = sorted(usual.presence)[rank]
    monkeypatch.setattr(choosing, "presence_threshold", threshold)
    assert choosing.answering() == {"answer_mode": "choice", "presence_threshold": threshold}
    moved = choosing(inputs=inputs, mode="predict")[0]
    assert moved.presence == usual.presence
    assert moved.seg_emitted == [presence >= threshold for presence in usual.presence]
    for row, was in enumerate(usual.seg_emitted):
        if was and moved.seg_emitted[row]:
            both = moved.probabilities[row], usual.probabilities[row]
            torch.testing.assert_close(*both, atol=1e-5, rtol=0)


def test_a_presence_threshold_is_a_probability_and_of_choice_only() -> None:
    for wrong in (1.5, -0.1, float("nan"), "half", True, None):
        with pytest.raises(ConfigError, match="a probability"):
            build(answer_mode="choice", presence_threshold=wrong)
    with pytest.raises(ConfigError, match="answers that are chosen"):
        build(answer_mode="generate", presence_threshold=0.2)
    assert build(answer_mode="forced").answering() == {"answer_mode": "forced"}


NAMING = {"answer": "Sure, {phrase}: [SEG].", "absent_answer": "Sure, {phrase}: none."}


@pytest.mark.parametrize("mode", ["forced", "choice"])
def test_an_answer_may_name_its_phrase_before_the_seg(mode: str) -> None:
    """It is the one that training shows, and the map is read behind the phrase."""
    model = build(answer_mode=mode, processor=NAMING).eval()
    groups = [[("vein",), ("left artery",)]]
    (found,) = model(inputs=inputs_of(model, [picture(0)], groups), mode="predict")
    for (phrase,), answer, there in zip(*groups, found.answers, found.seg_emitted, strict=True):
        assert answer.removesuffix("<|im_end|>") == model.processor.turn([phrase], [there])[1]
        assert answer.startswith(f"Sure, {phrase}: " + ("[SEG]" if there else "none"))
    if mode == "forced":
        assert found.seg_emitted == [True, True]
        inputs = inputs_of(model, [picture(0)], groups)
        with pytest.raises(ValueError, match="needs the prompts' phrases"):
            model(inputs={k: v for k, v in inputs.items() if k != "asked"}, mode="predict")
        with pytest.raises(ValueError, match="needs the phrase"):
            model.processor.answer_ids()


def test_an_answer_that_names_its_phrase_is_not_cut() -> None:
    model = build(answer_mode="generate", processor=NAMING, max_new_tokens=4).eval()
    phrase = "additional second posterolateral branch"
    wanted = [len(model.processor.answer_ids_for([phrase], [there])) for there in (True, False)]
    assert model._longest([(phrase,)]) == max(wanted) > 4
    assert build(max_new_tokens=4)._longest([(phrase,)]) == 4
    assert model._longest([("",)]) == 4  # words of the user's own


def test_a_chosen_answer_has_the_map_of_the_forced_one(choosing, monkeypatch) -> None:
    inputs = inputs_of(choosing, [picture(0)], [[(phrase,) for phrase in PHRASES]])
    chosen = choosing(inputs=inputs, mode="predict")[0]
    monkeypatch.setattr(choosing, "answer_mode", "forced")
    forced = choosing(inputs=inputs, mode="predict")[0]
    assert forced.presence is None
    for row, there in enumerate(chosen.seg_emitted):
        wanted = forced.probabilities[row] if there else torch.zeros(64, 64)
        torch.testing.assert_close(chosen.probabilities[row], wanted, atol=1e-5, rtol=1e-4)


def test_several_phrases_are_chosen_one_after_the_other(choosing, monkeypatch) -> None:
    image, groups = picture(0), [tuple(PHRASES[:5]), ("vein",), tuple(PHRASES[3:6])]
    inputs = inputs_of(choosing, [image], [groups])
    prediction = choosing(inputs=inputs, mode="predict")[0]
    flags: list[bool] = []
    presence: list[float] = []
    for phrases in groups:
        own = choose_alone(choosing, image, phrases)
        flags, presence = flags + own[0], presence + own[1]
        said = prediction.answers[len(flags) - 1]
        assert said == choosing.processor.templates.answer_for(phrases, own[0]) + "<|im_end|>"
    assert prediction.seg_emitted == flags and len(set(flags)) == 2
    assert prediction.presence == pytest.approx(presence, abs=1e-5)
    assert prediction.probabilities.shape == (9, 64, 64) and all(prediction.mapped)

    # The maps are those of the same answers, spoken word by word.
    def spoken(phrases: tuple[str, ...], own: list[bool]) -> torch.Tensor:
        ids = choosing.processor.answer_ids_for(phrases, own)
        monkeypatch.setattr(choosing, "answer_mode", "generate")
        monkeypatch.setattr(choosing.mllm, "generate", lambda *_: ids[None])
        one = inputs_of(choosing, [image], [[phrases]])
        return choosing(inputs=one, mode="predict")[0].probabilities

    wanted = [spoken(groups[0], flags[:5]), spoken(groups[1], flags[5:6])]
    torch.testing.assert_close(
        prediction.probabilities[:6], torch.cat(wanted), atol=1e-5, rtol=1e-4
    )


def test_choosing_among_singles_takes_one_pass(choosing, monkeypatch) -> None:
    rows: list[int] = []
    run = choosing.mllm.hidden_states
    monkeypatch.setattr(
        choosing.mllm, "hidden_states", lambda e, a: rows.append(len(e)) or run(e, a)
    )
    monkeypatch.setattr(choosing, "max_phrases_per_pass", 5)
    inputs = inputs_of(choosing, [picture(0)], [[(phrase,) for phrase in PHRASES]])
    choosing(inputs=inputs, mode="predict")
    assert rows == [5, 3]


def test_every_phrase_of_a_question_has_a_map_of_its_own(frozen_model) -> None:
    three = tuple(PHRASES[:3])
    inputs = inputs_of(frozen_model, [picture(0), picture(1)], [[three, ("vein",)], []])
    one, other = frozen_model(inputs=inputs, mode="predict")
    assert one.probabilities.shape == (4, 64, 64) and other.probabilities.shape == (0, 64, 64)
    answer = "artery: [SEG]; left main coronary artery: [SEG]; vein: [SEG].<|im_end|>"
    assert one.answers == [answer] * 3 + ["Sure, [SEG].<|im_end|>"]
    maps = one.probabilities
    assert not any(torch.equal(maps[a], maps[b]) for a, b in ((0, 1), (1, 2), (0, 2)))
    alone = frozen_model(
        inputs=inputs_of(frozen_model, [picture(0)], [[("vein",)]]), mode="predict"
    )
    torch.testing.assert_close(maps[3:], alone[0].probabilities, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "said",
    ["vein: [SEG]; artery: [SEG].", "Sure, [SEG] and [SEG].", "artery: [SEG]; vein: [SEG]", "Hm."],
)
def test_an_answer_that_cannot_be_mapped_gives_no_map(said: str) -> None:
    model = build(answer_mode="generate").eval()
    speak(model, model.processor.tokenizer.encode(said))
    inputs = inputs_of(model, [picture(0)], [[("artery", "vein")]])
    prediction = model(inputs=inputs, mode="predict")[0]
    assert prediction.mapped == [False, False] and prediction.seg_emitted == [False, False]
    assert not prediction.probabilities.any()
    assert prediction.answers == [said + "<|im_end|>"] * 2


def test_generated_clauses_are_mapped_and_not_cut() -> None:
    model = build(answer_mode="generate", max_new_tokens=4).eval()
    phrases = ("artery", "vein", "stent")
    said = model.processor.answer_ids_for(phrases, [False, True, True])[:-1]
    speak(model, said.tolist())
    inputs = inputs_of(model, [picture(0)], [[phrases]])
    prediction = model(inputs=inputs, mode="predict")[0]
    assert prediction.seg_emitted == [False, True, True] and all(prediction.mapped)
    assert not prediction.probabilities[0].any()
    assert not torch.equal(prediction.probabilities[1], prediction.probabilities[2])


def test_letters_that_spell_seg_are_no_seg() -> None:
    model = build(answer_mode="generate").eval()
    letters = [k for c in "artery: [SEG]; vein: none." for k in model.processor.tokenizer.encode(c)]
    speak(model, letters)
    prediction = model(
        inputs=inputs_of(model, [picture(0)], [[("artery", "vein")]]), mode="predict"
    )
    assert prediction[0].mapped == [False, False] and not prediction[0].probabilities.any()


def test_what_cannot_be_chosen(choosing) -> None:
    with pytest.raises(ConfigError, match=r"model\.answer_mode='guess'"):
        build(answer_mode="guess")
    inputs = predict_inputs(choosing.processor, [picture(0)], [[PHRASE]])
    with pytest.raises(ValueError, match="needs the phrases"):
        choosing(inputs=inputs, mode="predict")
    with pytest.raises(ValueError, match="beginning of the other"):
        first_difference(torch.tensor([1, 2]), torch.tensor([1, 2, 3]))
