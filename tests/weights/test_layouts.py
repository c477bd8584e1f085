"""Which layout: from the names of the tensors, checked against config.json."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from projects.sa2va.errors import CheckpointError
from projects.sa2va.weights.layouts import LAYOUTS, open_source, recognise
from projects.sa2va.weights.parts import PARTS, by_part, part_of

from .conftest import write_folder


@pytest.mark.parametrize(
    ("path", "name", "has_config"),
    [
        ("F1_model", "sa2va", True),
        ("F1_model/model.safetensors", "sa2va", False),
        ("F7_checkpoint/iter_12192.pth", "reference-training", False),
        ("F8_bases/internvl3_original", "internvl-chat", True),
        ("F8_bases/sam2_original", "sam2-meta", False),
        ("F8_bases/sam2_original/tiny.pt", "sam2-meta", False),
    ],
)
def test_the_references_files(reference: Path, path: str, name: str, has_config: bool) -> None:
    source = open_source(reference / path)
    assert source.layout.name == name and bool(source.config) == has_config
    assert not (source.renamed.unknown or source.renamed.incomplete)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_marks(layout) -> None:
    """A layout is known by its marks, and by no fewer; what a mark merely occurs in is none."""
    names = [f"{mark}x.weight" for mark in layout.marks]
    assert recognise(names, "x") is layout
    assert recognise([*names, "stranger"], "x") is layout
    with pytest.raises(CheckpointError):
        recognise([f"in.{mark}" for mark in layout.marks if mark != "model."], "x")
    for name in names:
        try:
            assert recognise([n for n in names if n != name], "x") is not layout
        except CheckpointError as error:
            assert layout.what in error.expected


@pytest.mark.parametrize("names", [[], ["model.layers.0.weight"], ["vision_model.a", "mlp1.0.b"]])
def test_no_layout_that_we_know(names: list[str]) -> None:
    with pytest.raises(CheckpointError, match=f"holds {len(names)} tensors") as caught:
        recognise(names, "some/folder")
    assert "some/folder" in caught.value.found
    assert all(name in caught.value.found for name in names)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", r"config\.json cannot be read"),
        ("[1]", r"config\.json cannot be read: it holds a list"),
        (None, r"config\.json cannot be read.*No such file"),
        ('{"model_type": "internvl_chat"}', "model_type 'internvl_chat'.*a released Sa2VA"),
        ('{"a": 1}', "model_type None"),
    ],
)
def test_a_config_that_is_not_the_weights(tmp_path, released, config, message: str) -> None:
    save_file(released, tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_source(tmp_path)
    assert str(tmp_path) in caught.value.found and "download" in caught.value.fix


def test_an_empty_config_is_not_none_at_all(tmp_path, released) -> None:
    write_folder(tmp_path, released, {})
    with pytest.raises(CheckpointError, match="model_type None"):
        open_source(tmp_path)


def test_parts_of_every_weight(reference: Path) -> None:
    source = open_source(reference / "F1_model")
    groups = by_part(source.renamed.by_target())
    assert {part: len(names) for part, names in groups.items()} == {
        "MLLM vision encoder": 40,
        "MLLM projector": 6,
        "MLLM embeddings": 1,
        "MLLM head": 1,
        "MLLM language model": 37,
        "[SEG] projector": 4,
        "SAM2 image encoder": 78,
        "SAM2 mask decoder": 131,
        "SAM2 video memory": 70,
        "SAM2 prompt encoder": 16,
    }
    assert part_of("stranger.weight") == "other"
    assert part_of("mllm.model.layers.0.q_proj.lora_A.weight") == "LoRA"
    assert part_of("mllm.lm_head.token_rows") == "token rows"
    assert list(groups) == [part for part, _ in PARTS if part in groups]


def test_parts_do_not_depend_on_pefts_wrappers() -> None:
    for plain in ("model.vision_tower.x", "model.multi_modal_projector.x", "lm_head.weight"):
        assert part_of(f"mllm.{plain}") == part_of(f"mllm.model.base_model.model.{plain}")
    assert by_part(["a", "b"]) == {"other": ["a", "b"]}
