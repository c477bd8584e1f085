"""Checksums of weights, and what the report says of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from projects.sa2va.weights import checksum
from projects.sa2va.weights.report import tensor_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)


def weights(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (3, 2), "b": (), "c": (0, 4), "d": (5,)}
    return {n: torch.randn(s, generator=generator).mul(9).to(dtype) for n, s in shapes.items()}


def digest(tensors: dict[str, Tensor], **kwargs: int) -> str:
    return checksum(tensors, tensors.__getitem__, **kwargs)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 99), st.sampled_from(DTYPES), st.permutations("abcd"), st.integers(1, 8))
def test_order_threads_and_memory_do_not_matter(seed, dtype, order, threads) -> None:
    tensors = weights(seed, dtype)
    expected = digest(tensors)
    assert len(expected) == 16 and int(expected, 16) >= 0
    assert digest({n: tensors[n] for n in order}, threads=threads) == expected
    other = {n: t.T.contiguous().T if t.dim() == 2 else t.clone() for n, t in tensors.items()}
    assert digest(other) == expected


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 99), st.sampled_from("ad"), st.integers(0, 4), st.integers(0, 31))
def test_every_bit_matters(seed: int, name: str, place: int, bit: int) -> None:
    tensors = weights(seed)
    before = digest(tensors)
    mask = -(2**31) if bit == 31 else 2**bit
    tensors[name].view(torch.int32).view(-1)[place] ^= mask
    assert digest(tensors) != before


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "a": t["a"].reshape(2, 3)},
        lambda t: {**t, "a": t["a"].view(torch.int32)},
        lambda t: {("e" if n == "a" else n): v for n, v in t.items()},
        lambda t: {n: v for n, v in t.items() if n != "c"},
        lambda t: {**t, "a": t["a"].flip(0)},
    ],
    ids=["shape", "dtype", "name", "empty tensor", "order of rows"],
)
def test_what_else_matters(change) -> None:
    tensors = weights(0)
    assert digest(change(dict(tensors))) != digest(tensors)


def test_rows_by_part() -> None:
    tensors = {
        "seg_projector.0.bias": torch.zeros(2),
        "mllm.lm_head.weight": torch.zeros(2, 2, dtype=torch.bfloat16),
        "seg_projector.2.bias": torch.ones(3),
    }
    head, projector = tensor_rows(tensors, "there")
    assert (head.part, head.tensors, head.loaded) == ("MLLM head", 1, 1)
    assert (head.dtype, projector.dtype) == ("bfloat16", "float32")
    assert (projector.part, projector.tensors, projector.source) == ("[SEG] projector", 2, "there")
    assert projector.checksum == digest({n: t for n, t in tensors.items() if "seg" in n})
