"""Checkpoints of the reference's training: what goes where, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from projects.sa2va.checkpoints import LoadReport, load_trained, read_checkpoint
from projects.sa2va.checkpoints.foreign import is_tied
from projects.sa2va.errors import CheckpointError
from projects.sa2va.models import Sa2VAModel
from projects.sa2va.models.trained import our_names

from .over_reference import EMBEDDING, HEAD, SMALL, checkpoint_path, copy_f1, over, weight

ADDED = [595, 596, 597, 598, 599]
OTHERS = list(range(595))
PUBLISHED = {EMBEDDING: "language_model.model.embed_tokens.weight"}
PUBLISHED[HEAD] = "language_model.lm_head.weight"


@pytest.fixture(scope="module")
def released(reference: Path) -> dict[str, Tensor]:
    return load_file(reference / "F1_model" / "model.safetensors")


def with_state(f7: dict[str, Any], *drop: str, **more: Any) -> dict[str, Any]:
    """The checkpoint with tensors dropped, and with ``state`` or ``meta`` added."""
    state = {k: v for k, v in f7["state_dict"].items() if k not in drop}
    state.update(more.get("state", {}))
    return {**f7, "state_dict": state, "meta": {**f7["meta"], **more.get("meta", {})}}


@pytest.fixture(scope="module")
def rows_only(f7: dict[str, Any], released: dict[str, Tensor]) -> dict[str, Any]:
    """As a training that moved nothing but the added rows of the tables."""
    tables = {}
    for name, published in PUBLISHED.items():
        tables[name] = released[published].clone()
        tables[name][ADDED] = f7["state_dict"][name][ADDED]
        assert not torch.equal(tables[name], released[published])
    return with_state(f7, state=tables)


@pytest.fixture
def load(base: Sa2VAModel, reference: Path) -> Callable[..., tuple[Sa2VAModel, LoadReport]]:
    """Loads a checkpoint into a copy of the base model, or into ``model``."""

    def into(checkpoint: dict[str, Any], model: Sa2VAModel | None = None) -> Any:
        model = model or copy.deepcopy(base)
        return model, load_trained(model, checkpoint, checkpoint_path(reference))

    return into


@pytest.fixture
def refused(load: Callable) -> Callable[..., CheckpointError]:
    def into(checkpoint: dict[str, Any], model: Sa2VAModel | None = None) -> CheckpointError:
        with pytest.raises(CheckpointError) as caught:
            load(checkpoint, model)
        return caught.value

    return into


def tables(model: Sa2VAModel) -> dict[str, Tensor]:
    """Both tables as the forward pass sees them: rows of added tokens put in."""
    found = {}
    for key, name in (
        (EMBEDDING, "mllm.model.language_model.embed_tokens"),
        (HEAD, "mllm.lm_head"),
    ):
        found[key] = weight(model, f"{name}.weight").clone()
        if f"{name}.token_rows" in our_names(model):
            found[key][ADDED] = weight(model, f"{name}.token_rows")
    return found


# ---------------------------------------------------------------------------------------- tables


def test_tables_whose_added_rows_alone_differ_become_rows(load, rows_only, f7, base) -> None:
    model, report = load(rows_only)
    assert not [name for name in model.changed_frozen if name.startswith("mllm")]
    for name, table in tables(model).items():
        assert torch.equal(table, rows_only["state_dict"][name].float())
    before = tables(base)
    kept = weight(model, "mllm.model.language_model.embed_tokens.weight")
    assert torch.equal(kept[OTHERS], before[EMBEDDING][OTHERS])
    notes = [note for note in report.notes if "the other 595 rows are the base's" in note]
    assert len(notes) == 2
    assert "embed_tokens.weight: 5 added rows (largest change 0.0767)" in notes[0]
    assert "kept as token rows" in notes[0]


def test_tables_whose_other_rows_differ_are_kept_whole(load, rows_only, f7) -> None:
    one_row = rows_only["state_dict"][HEAD].clone()
    one_row[17] += 1e-2
    model, report = load(with_state(rows_only, state={HEAD: one_row}))
    assert [n for n in model.changed_frozen if n.startswith("mllm")] == [
        "mllm.model.base_model.model.lm_head.token_adapter.base_layer.weight"
    ]
    assert torch.equal(tables(model)[HEAD], one_row.float())
    note = next(note for note in report.notes if "kept whole" in note)
    assert "mllm.lm_head.weight: 5 added rows" in note
    assert "1 of the other 595 rows differ from the base (largest change 0.01" in note

    model, _ = load(f7)
    assert len([n for n in model.changed_frozen if n.startswith("mllm")]) == 2
    for name, table in tables(model).items():
        assert torch.equal(table, f7["state_dict"][name].float())


def test_model_without_token_rows_takes_the_tables_whole(load, rows_only, reference) -> None:
    model = over(reference, processor=SMALL, mllm={"train_token_rows": False})
    load(rows_only, model)
    assert not any(name.endswith("token_rows") for name in our_names(model))
    for name, table in tables(model).items():
        assert torch.equal(table, rows_only["state_dict"][name].float())


def test_another_base_is_told_from_its_tables(refused, f7, base) -> None:
    model = copy.deepcopy(base)
    table = weight(model, "mllm.model.language_model.embed_tokens.weight")
    generator = torch.Generator().manual_seed(0)
    table.copy_(table.std() * torch.randn(table.shape, generator=generator))
    error = refused(f7, model)
    assert "trained over other base weights" in error.found
    assert "embed_tokens.weight" in error.found
    assert "median cosine" in error.found
    assert "pretrained_pth" in error.fix


@pytest.mark.parametrize("rows", [595, 608])
def test_another_vocabulary(refused, f7, rows) -> None:
    table = torch.zeros(608, 96, dtype=torch.bfloat16)
    table[:600] = f7["state_dict"][HEAD]
    error = refused(with_state(f7, state={HEAD: table[:rows]}))
    assert f"mllm.lm_head.weight ({rows}, 96) in the file, (600, 96) in the model" in error.found
    assert "processor.tokenizer" in error.fix


def test_state_dict_under_another_key(load, f7, loaded, tmp_path) -> None:
    """As some programs save it again."""
    expected = loaded.state_dict()
    torch.save({"model": f7["state_dict"]}, tmp_path / "again.pth")
    model, report = load(read_checkpoint(tmp_path / "again.pth"))
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert report.iteration is None


# ---------------------------------------------------------------------------- a head that is tied


@pytest.fixture(scope="module")
def tied(reference: Path, released: dict[str, Tensor], tmp_path_factory) -> Path:
    """F1 without a head: its head is its embedding."""
    folder = copy_f1(reference, tmp_path_factory.mktemp("tied") / "F1", tie_word_embeddings=True)
    state = {k: v for k, v in released.items() if k != PUBLISHED[HEAD]}
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def tied_base(reference: Path, tied: Path) -> Sa2VAModel:
    model = over(reference, tied, processor=SMALL)
    assert is_tied(model)
    return model


@pytest.fixture
def of_tied(rows_only: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint over the tied base whose two tables stayed one."""
    return with_state(rows_only, state={HEAD: rows_only["state_dict"][EMBEDDING].clone()})


def test_tied_tables_that_are_one(load, of_tied, tied_base) -> None:
    model, _ = load(of_tied, copy.deepcopy(tied_base))
    assert is_tied(model)
    expected = of_tied["state_dict"][EMBEDDING].float()
    assert torch.equal(tables(model)[EMBEDDING], expected)
    hidden = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.mllm.logits(hidden), hidden @ expected.T)
    assert not [name for name in model.changed_frozen if name.startswith("mllm")]


@pytest.mark.parametrize("row", [17, 597])
@pytest.mark.parametrize("embedding", [True, False], ids=["both", "head_only"])
def test_tied_model_cannot_take_two_tables(refused, of_tied, tied_base, row, embedding) -> None:
    head = of_tied["state_dict"][HEAD].clone()
    head[row] += 0.05
    drop = () if embedding else (EMBEDDING,)
    error = refused(with_state(of_tied, *drop, state={HEAD: head}), copy.deepcopy(tied_base))
    assert "a head that differs from its embedding" in error.found
    assert error.fix == "set model.mllm.tie_word_embeddings=False"


def test_with_a_head_of_its_own_it_can(load, of_tied, reference, tied) -> None:
    head = of_tied["state_dict"][HEAD].clone()
    head[[17, 597]] += 0.05
    model = over(reference, tied, processor=SMALL, mllm={"tie_word_embeddings": False})
    load(with_state(of_tied, state={HEAD: head}), model)
    assert not is_tied(model)
    assert torch.equal(tables(model)[HEAD], head.float())
    assert torch.equal(tables(model)[EMBEDDING], of_tied["state_dict"][EMBEDDING].float())


# ------------------------------------------------------------------------------------------ LoRA


def test_lora_of_another_rank(refused, f7, reference) -> None:
    model = over(reference, processor=SMALL, mllm={"lora": {"r": 4, "lora_alpha": 8}})
    error = refused(f7, model)
    assert "42 other shape (LoRA)" in error.found
    assert "model.mllm.lora=dict(r=8, lora_alpha=" in error.fix


def test_model_without_lora(refused, f7, reference) -> None:
    model = over(reference, processor=SMALL, mllm={"lora": None, "train_token_rows": False})
    error = refused(f7, model)
    assert "42 unexpected (LoRA)" in error.found
    assert "model.mllm.lora=dict(r=8" in error.fix


@pytest.mark.parametrize("text", ["lora_alpha=32", "model = dict(llm_lora={'lora_alpha': 32})"])
def test_alpha_that_the_checkpoint_says(refused, f7, text) -> None:
    error = refused(with_state(f7, meta={"cfg": text}))
    assert "lora_alpha=32, the config has lora_alpha=16" in error.found
    assert error.fix == "set model.mllm.lora.lora_alpha=32"


def test_alpha_in_the_notes(load, f7) -> None:
    _, report = load(f7)
    assert any("used 16 (model.mllm.lora.lora_alpha), a scale of 2" in n for n in report.notes)
    _, report = load(with_state(f7, meta={"cfg": "llm_lora=dict(r=8, lora_alpha=16)"}))
    assert not any("alpha" in note for note in report.notes)


# --------------------------------------------------------------------- missing, left over, shaped


def test_a_tensor_is_missing(refused, f7) -> None:
    name = next(name for name in f7["state_dict"] if ".lora_B." in name)
    error = refused(with_state(f7, name))
    assert "1 missing (LoRA)" in error.found
    assert "unexpected" not in error.found


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("mllm.model.language_model.base_model.model.model.other.weight", "1 unexpected"),
        ("grounding_encoder.sam2_model.sam_mask_decoder.conv_s9.weight", "1 unexpected"),
        ("something.weight", "the reference's training does not write"),
    ],
)
def test_a_tensor_is_left_over(refused, f7, name, found) -> None:
    error = refused(with_state(f7, state={name: torch.zeros(2)}))
    assert found in error.found
    assert name.split(".")[-2] in error.found


@pytest.mark.parametrize("value", [3, [1.0], None])
def test_a_weight_that_is_no_tensor(f7, tmp_path, value) -> None:
    name = "text_hidden_fcs.2.weight"
    torch.save(
        {"state_dict": {**f7["state_dict"], name: value}, "meta": {}}, tmp_path / "broken.pth"
    )
    with pytest.raises(CheckpointError, match=f"no tensors among its weights: {name}"):
        read_checkpoint(tmp_path / "broken.pth")


def test_a_tensor_of_another_shape(refused, f7) -> None:
    error = refused(with_state(f7, state={"text_hidden_fcs.2.weight": torch.zeros(256, 95)}))
    assert "1 other shape ([SEG] projector)" in error.found
    assert "(256, 95) in the file, (256, 96) in the model" in error.found


# -------------------------------------------------------------------- frozen weights, video memory


def test_frozen_tensors_that_come_along_replace(load, f7, base) -> None:
    model, report = load(f7)
    heads = [n for n in model.changed_frozen if "iou_prediction" in n or "obj_score_head" in n]
    assert len(heads) == 12
    for name in heads:
        assert not model.get_parameter(name).requires_grad
        assert not torch.equal(model.get_parameter(name), base.get_parameter(name))
    assert any(note.startswith("14 frozen tensors replaced") for note in report.notes)
    assert base.changed_frozen == []
    differ = {k for k, v in model.base_fingerprint.items() if v != base.base_fingerprint[k]}
    assert differ == {"MLLM embeddings", "MLLM head", "SAM2 mask decoder"}


def test_frozen_tensors_that_are_the_bases_are_said_to_be(load, rows_only, released) -> None:
    prefix = "grounding_encoder.sam2_model.sam_mask_decoder."
    own = {k: v for k, v in released.items() if k.startswith(prefix)}
    model, report = load(with_state(rows_only, state=own))
    assert model.changed_frozen == []
    row = [row for row in report.rows if row.part == "SAM2 mask decoder"][-1]
    assert (row.tensors, row.loaded, row.ignored) == (131, 119, {"equal to the base": 12})
    assert "not loaded: 12 (equal to the base)" in report.text()


def test_video_memory_is_kept_for_export(load, f7, base) -> None:
    name = "grounding_encoder.sam2_model.maskmem_tpos_enc"
    ours = "grounding.memory_temporal_positional_encoding"
    other = base.grounding.unused[ours] + 1
    model, _ = load(with_state(f7, state={name: other}))
    assert torch.equal(model.grounding.unused[ours], other)
    assert len(model.grounding.unused) == len(base.grounding.unused) == 70
    assert not torch.equal(base.grounding.unused[ours], other)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_checkpoint_is_refused(
    f7: dict[str, Any], refused: Callable[..., CheckpointError], value: float
) -> None:
    table = torch.full_like(f7["state_dict"][EMBEDDING], value)
    error = refused(with_state(f7, state={EMBEDDING: table}))
    assert "1 tensors with values that are no numbers" in error.found
    assert "embed_tokens" in error.found
