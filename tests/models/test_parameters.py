"""The table of parameters, and the identity of frozen weights."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from projects.sa2va.models import Sa2VAModel, fingerprint, parameter_table, part_of
from projects.sa2va.models.parameters import frozen_tensors

from .conftest import build


def rows_of(table: str) -> dict[str, list[str]]:
    return {cells[0]: cells[1:] for cells in (re.split(r" {2,}", x) for x in table.splitlines())}


def number(cell: str) -> int:
    return int(cell.replace(",", ""))


@pytest.mark.parametrize(
    "mllm", [dict(), dict(lora=None, train_token_rows=False), dict(train_token_rows=False)]
)
def test_every_parameter_has_a_part(mllm: dict) -> None:
    names = [name for name, _ in build(mllm=mllm).named_parameters()]
    assert [name for name in names if part_of(name) == "other"] == []
    parts = {part_of(name) for name in names}
    assert ("LoRA" in parts) == (mllm.get("lora", True) is not None)
    assert ("token rows" in parts) == mllm.get("train_token_rows", True)
    assert part_of("something.else") == "other"


def test_table_is_one_screen_with_right_totals(frozen_model: Sa2VAModel) -> None:
    table = parameter_table(frozen_model)
    lines = table.splitlines()
    assert len(lines) <= 14 and max(map(len, lines)) <= 80
    rows = rows_of(table)
    parts = [row for name, row in rows.items() if name not in ("part", "all")]
    parameters = list(frozen_model.parameters())
    count = sum(p.numel() for p in parameters)
    train = sum(p.numel() for p in parameters if p.requires_grad)
    assert number(rows["all"][0]) == count == sum(number(row[0]) for row in parts)
    assert number(rows["all"][1]) == train == sum(number(row[1]) for row in parts)
    assert rows["MLLM vision encoder"][1] == "0"
    assert number(rows["token rows"][0]) == number(rows["token rows"][1]) == 2 * 5 * 32
    head = frozen_model.mllm._core.get_output_embeddings().weight
    assert number(rows["MLLM head"][0]) == head.numel()


def test_table_shows_dtypes_and_bytes() -> None:
    rows = rows_of(parameter_table(build(mllm=dict(dtype="bfloat16"), autocast="bfloat16")))
    assert rows["MLLM head"][2] == "bfloat16" and rows["LoRA"][2] == "float32"
    model = nn.Module()
    model.seg_projector = nn.Linear(1024, 1023, dtype=torch.bfloat16)
    assert rows_of(parameter_table(model))["all"][-1] == "2.0"


def test_sharded_parameters_are_counted_whole() -> None:
    """Under ZeRO-3 a parameter is empty and ``ds_numel`` holds its size."""
    model = nn.Module()
    model.seg_projector = nn.Linear(1, 1, bias=False)
    model.seg_projector.weight.ds_numel = 12345
    assert rows_of(parameter_table(model))["[SEG] projector"][0] == "12,345"


def test_fingerprint_is_of_the_seed() -> None:
    one, same = build().base_fingerprint, build().base_fingerprint
    other = build(mllm=dict(seed=1), grounding=dict(seed=1)).base_fingerprint
    assert one == same
    # Of SAM2's mask decoder only the IoU and object heads are frozen; they are drawn too.
    assert {part for part in one if one[part] == other[part]} <= {"SAM2 prompt encoder"}
    assert one.keys() == other.keys() and len(one) >= 5


def test_fingerprint_does_not_depend_on_the_dtype_or_on_what_trains(tmp_path: Path) -> None:
    source = build(mllm=dict(lora=None, train_token_rows=False))
    source.mllm._core.save_pretrained(tmp_path / "mllm")
    source.grounding.model.save_pretrained(tmp_path / "grounding")

    def loaded(dtype: str) -> Sa2VAModel:
        return build(
            mllm=dict(dtype=dtype, config=None, pretrained=str(tmp_path / "mllm")),
            grounding=dict(dtype=dtype, config=None, pretrained=str(tmp_path / "grounding")),
        )

    full, half = loaded("float32"), loaded("bfloat16")
    assert next(half.mllm._core.model.vision_tower.parameters()).dtype == torch.bfloat16
    assert full.base_fingerprint == half.base_fingerprint == build().base_fingerprint
    with torch.no_grad():
        for parameter in full.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    assert fingerprint(frozen_tensors(full)) == full.base_fingerprint
    with torch.no_grad():
        full.mllm._core.model.vision_tower.embeddings.cls_token.add_(1.0)
    changed = fingerprint(frozen_tensors(full))
    assert [part for part in changed if changed[part] != full.base_fingerprint[part]] == [
        "MLLM vision encoder"
    ]


def test_fingerprint_sees_shapes() -> None:
    flat = torch.arange(6.0)
    assert fingerprint([("mllm.x", flat)]) != fingerprint([("mllm.x", flat.reshape(2, 3))])
