"""``init_from`` takes whole parts of another checkpoint, and nothing else."""

from __future__ import annotations

import pytest
import torch

from projects.sa2va.checkpoints import InitFrom, load_parts, read_initial, write_atomically
from projects.sa2va.errors import CheckpointError, ConfigError
from projects.sa2va.models import part_of

from .conftest import build

ENCODER, DECODER = "SAM2 image encoder", "SAM2 mask decoder"


@pytest.fixture
def path(payload, tmp_path):
    file = tmp_path / "iter_3.pth"
    write_atomically({k: v for k, v in payload.items() if k != "layout"}, file)
    return file


def init(path, parts) -> InitFrom:
    return InitFrom.from_config({"checkpoint": str(path), "parts": parts})


def take(model, path, parts):
    wanted = init(path, parts)
    return load_parts(model, read_initial(wanted), wanted)


def changed_parts(model, fresh) -> set[str]:
    before, after = fresh.trained_state_dict(), model.trained_state_dict()
    return {part_of(name) for name in before if not torch.equal(before[name], after[name])}


def test_named_parts_are_taken_and_the_rest_is_as_built(tiny_config, trained, payload, path):
    model, fresh = build(tiny_config), build(tiny_config)
    report, kept = take(model, path, [ENCODER, DECODER])
    assert changed_parts(model, fresh) == {ENCODER, DECODER}
    theirs = trained.trained_state_dict()
    for name, tensor in model.trained_state_dict().items():
        if part_of(name) in (ENCODER, DECODER):
            assert torch.equal(tensor, theirs[name]), name
    rows = {row.part: row for row in report.rows if row.source == str(path)}
    assert set(rows) == {ENCODER, DECODER}
    assert f"{ENCODER} <- {path}" in report.text()
    assert "not taken from" in report.notes[-1] and "LoRA" in report.notes[-1]
    assert kept["parts"] == [ENCODER, DECODER] and kept["iteration"] == 3
    assert kept["sha256"] and kept["weights"] == "raw" and kept["checkpoint"] == "iter_3.pth"


def test_all_is_everything_that_trains(tiny_config, trained, path):
    model = build(tiny_config)
    _, kept = take(model, path, "all")
    theirs = trained.trained_state_dict()
    assert all(torch.equal(t, theirs[n]) for n, t in model.trained_state_dict().items())
    assert {"LoRA", "token rows", "[SEG] projector", ENCODER} <= set(kept["parts"])


def test_the_average_is_taken_where_there_is_one(tiny_config, payload, tmp_path):
    average = {name: tensor + 1 for name, tensor in payload["state_dict"].items()}
    file = tmp_path / "iter_3.pth"
    content = {"state_dict": payload["state_dict"], "averaged": average, "meta": payload["meta"]}
    write_atomically(content, file)
    model = build(tiny_config)
    _, kept = take(model, file, [DECODER])
    name = next(n for n in average if part_of(n) == DECODER)
    assert torch.equal(model.get_parameter(name), average[name])
    assert kept["weights"] == "averaged"


def test_parts_of_a_model_with_other_parts(tiny_config, path):
    other = build(tiny_config, model__mllm__lora=None, model__mllm__train_token_rows=False)
    report, _ = take(other, path, ["MLLM projector"])  # peft's wrappers are in the file's names
    assert report.rows[-1].loaded == 6


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (["SAM2 image encoders"], "did you mean 'SAM2 image encoder'"),
        ("LoRA", "init_from.parts='LoRA'"),
        ([], r"init_from.parts=\[\]"),
        (None, "init_from.parts=None"),
        ([ENCODER, ENCODER], "each once"),
    ],
)
def test_parts_that_are_none(parts, text):
    with pytest.raises(ConfigError, match=text) as caught:
        init("some.pth", parts)
    assert "parameter table" in caught.value.fix


def test_a_command_line_drops_blanks(path):
    assert init(path, ["SAM2imageencoder", "[SEG]projector"]).parts == (ENCODER, "[SEG] projector")
    assert InitFrom.from_config(None) is None
    with pytest.raises(ConfigError, match=r"init_from\.checkpoint=None"):
        InitFrom.from_config({"parts": [ENCODER]})


def test_a_part_that_the_checkpoint_lacks(path):
    with pytest.raises(CheckpointError, match="holds no reconstruction head, network") as caught:
        read_initial(init(path, [ENCODER, "reconstruction head", "network"]))
    assert ENCODER in caught.value.expected
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_initial(init(path.with_name("iter_4.pth"), [ENCODER]))


def test_a_part_that_does_not_train_here(tiny_config, path):
    model = build(tiny_config, model__grounding__train_image_encoder=False)
    with pytest.raises(CheckpointError, match=f"{ENCODER}, which does not train") as caught:
        take(model, path, [DECODER, ENCODER])
    assert "model.grounding.train_image_encoder=True" in caught.value.fix


@pytest.mark.parametrize("problem", ["missing", "left over", "of another shape"])
def test_a_part_that_is_not_the_same(tiny_config, payload, tmp_path, problem):
    state = dict(payload["state_dict"])
    name = next(n for n in state if part_of(n) == ENCODER)
    if problem == "missing":
        del state[name]
    elif problem == "left over":
        state[name + "s"] = state[name]
    else:
        state[name] = state[name][None]
    file = tmp_path / "iter_3.pth"
    write_atomically({"state_dict": state, "meta": payload["meta"]}, file)
    model, fresh = build(tiny_config), build(tiny_config)
    with pytest.raises(CheckpointError, match=f"does not fit {ENCODER}: 1 {problem}"):
        take(model, file, [DECODER, ENCODER])
    assert changed_parts(model, fresh) == set()
    take(model, file, [DECODER])
    assert changed_parts(model, fresh) == {DECODER}


def refused(model, path, parts):
    fresh = {name: tensor.clone() for name, tensor in model.trained_state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        take(model, path, parts)
    assert all(torch.equal(t, fresh[n]) for n, t in model.trained_state_dict().items())
    return caught.value


@pytest.mark.parametrize(
    ("seeds", "below"),
    [
        (
            {"model__mllm__seed": 1},
            {
                "LoRA": ["MLLM language model"],
                "token rows": ["MLLM embeddings", "MLLM head"],
                "MLLM projector": ["MLLM vision encoder", "MLLM language model"],
                "[SEG] projector": ["MLLM language model"],
            },
        ),
        ({"model__grounding__seed": 1}, {DECODER: ["SAM2 prompt encoder"]}),
    ],
    ids=["language", "grounding"],
)
def test_what_stands_on_other_frozen_weights(tiny_config, path, seeds, below):
    model = build(tiny_config, **seeds)
    for part, names in below.items():
        error = refused(model, path, [ENCODER, part])
        assert "other frozen weights or tokens" in error.found
        assert error.found.endswith(": " + ", ".join(names))
        assert f"take {part} out of init_from.parts" in error.fix
    rest = {"LoRA", "token rows", "MLLM projector", "[SEG] projector", DECODER, ENCODER}
    _, kept = take(model, path, sorted(rest - below.keys()))  # these stand on what is the same
    assert ENCODER in kept["parts"]


def test_what_stands_on_weights_that_trained_there(tiny_config, path):
    model = build(tiny_config, model__grounding__train_image_encoder=False)
    error = refused(model, path, [DECODER])
    assert error.found.endswith(": " + ENCODER)
    assert f"let {ENCODER} train here too" in error.fix


def test_weights_that_train_here_may_have_been_frozen_there(tiny_config, payload, tmp_path):
    frozen = build(tiny_config, model__grounding__train_image_encoder=False)
    state = frozen.trained_state_dict()
    meta = {**payload["meta"], "base_fingerprint": frozen.base_fingerprint}
    file = tmp_path / "iter_3.pth"
    write_atomically({"state_dict": state, "meta": meta}, file)
    model = build(tiny_config)
    _, kept = take(model, file, [DECODER])
    assert kept["parts"] == [DECODER]


@pytest.mark.parametrize(
    ("change", "found", "fix"),
    [
        (
            {"lora_alpha": 8},
            "trained with lora_alpha=4, the config has lora_alpha=8",
            "set model.mllm.lora.lora_alpha=4,",
        ),
        ({"use_rslora": True}, "trained with use_rslora=False", "model.mllm.lora.use_rslora=False"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_lora_of_another_scale(tiny_config, path, change, found, fix):
    model = build(tiny_config, **{f"model__mllm__lora__{k}": v for k, v in change.items()})
    for parts in (["LoRA"], "all"):
        error = refused(model, path, parts)
        assert found in error.found and fix in error.fix
    take(model, path, [ENCODER, DECODER, "[SEG] projector"])


@pytest.mark.parametrize("text", ["llm_lora = dict(r=2, lora_alpha=4)", "llm_lora = Lora(r=2)"])
def test_lora_that_was_converted_from_another_program(tiny_config, payload, tmp_path, text):
    """Its config is that program's, and need not say alpha."""
    file = tmp_path / "converted.pth"
    meta = {**payload["meta"], "cfg": text, "converted": {"source": "iter_12192.pth"}}
    write_atomically({"state_dict": payload["state_dict"], "meta": meta}, file)
    report, _ = take(build(tiny_config), file, ["LoRA"])
    said = [note for note in report.notes if "does not say LoRA's alpha" in note]
    assert len(said) == ("lora_alpha" not in text)
    if not said:
        other = build(tiny_config, model__mllm__lora__lora_alpha=8)
        assert "lora_alpha=4, the config has lora_alpha=8" in refused(other, file, ["LoRA"]).found


def test_another_programs_checkpoint(payload, tmp_path, monkeypatch):
    foreign = {**payload, "layout": "reference-training"}
    monkeypatch.setattr(
        "projects.sa2va.checkpoints.initial.read_checkpoint", lambda *_, **__: foreign
    )
    with pytest.raises(CheckpointError, match="another program") as caught:
        read_initial(init("iter_12192.pth", [DECODER]))
    assert "load_from" in caught.value.fix
