"""tools/convert.py and tools/inspect_checkpoint.py as users call them, in this process."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS
from safetensors.torch import load_file, save_file

from projects.sa2va.checkpoints import (
    build_model_from_checkpoint,
    load_trained,
    provenance,
    read_checkpoint,
    write_atomically,
)
from projects.sa2va.checkpoints.convert import whole_model
from projects.sa2va.config import load_config
from projects.sa2va.models import Sa2VAModel
from tests.checkpoints.over_reference import checkpoint_path, copy_f1, write_config
from tests.conftest import ROOT

from .conftest import Ended

TARGETS = ("sa2va", "native", "adapter", "trainable")
FLOAT32 = ("--dtype", "float32")
WHAT = {
    "sa2va": "a released Sa2VA",
    "native": "a whole Sa2VA in transformers' layout",
    "adapter": "a peft adapter folder of this project",
    "trainable": "a training checkpoint of this project",
}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Callable[..., Ended]:
    """Runs a tool as a script with these arguments, in this process."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))

    def run(name: str, *args: object) -> Ended:
        monkeypatch.setattr(sys, "argv", [f"tools/{name}.py", *map(str, args)])
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name="__main__")
        except SystemExit as end:
            code = end.code
        return Ended(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def tiny(rendered: Path) -> Any:
    return load_config(rendered / "experiment.py")


def write_tiny(config: Any, path: Path, seed: int) -> Sa2VAModel:
    """A checkpoint of the tiny experiment with trained parts drawn from ``seed``."""
    model = MODELS.build(config.model).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    meta = provenance(model, path.parent)
    meta.update(cfg=config.pretty_text, iter=3, epoch=0, seed=0, world_size=1)
    write_atomically({"state_dict": model.trained_state_dict(), "meta": meta}, path)
    return model


@pytest.fixture(scope="module")
def ours(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sa2VAModel]:
    """A checkpoint of this project, and its model."""
    path = tmp_path_factory.mktemp("ours") / "iter_3.pth"
    return path, write_tiny(tiny, path, seed=1)


@pytest.fixture(scope="module")
def f1(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released model of which the folder says everything."""
    return copy_f1(shared_dir / "reference", tmp_path_factory.mktemp("released") / "F1")


@pytest.fixture(scope="module")
def f7(shared_dir: Path) -> Path:
    """A training checkpoint of the reference over it."""
    return checkpoint_path(shared_dir / "reference")


@pytest.fixture(scope="module")
def config(shared_dir: Path, f1: Path) -> Path:
    """A config of the model that the checkpoint belongs to."""
    return write_config(shared_dir / "reference", f1, f1.with_name("released.py"))


def same(one: Any, other: Any) -> bool:
    expected = other.state_dict()
    return all(torch.equal(value, expected[name]) for name, value in one.state_dict().items())


# --------------------------------------------------------------------------- a checkpoint of ours


@pytest.mark.parametrize("to", TARGETS)
def test_checkpoint_of_ours_to(call, ours, tiny, tmp_path, to) -> None:
    path, model = ours
    out = tmp_path / "out"
    ended = call("convert", path, out, "--to", to, *FLOAT32)
    assert ended.code == 0, ended.err
    assert f"Loaded {path} (checkpoint file, raw weights, iteration 3" in ended.out
    assert f"Wrote {out}: 0.00" in ended.out
    assert ("video memory is not there" in ended.out) == (to in ("sa2va", "native"))
    assert "every LoRA B is zero" not in ended.out
    shown = call("inspect_checkpoint", out)
    assert WHAT[to] in shown.out
    assert shown.code == 0
    if to == "trainable":
        again, report = build_model_from_checkpoint(out)
        assert report.iteration == 3
        assert same(again, model)
        scale = read_checkpoint(out)["meta"]["lora_scale"]
        assert scale == {"lora_alpha": 4, "use_rslora": False, "alpha_pattern": {}}
        assert "resumable: no (weights only)" in shown.out
    elif to == "adapter":
        again = MODELS.build(tiny.model).eval()
        load_trained(again, read_checkpoint(out), out)
        assert same(again, model)
        stored = json.loads((out / "provenance.json").read_text())
        assert stored["base_fingerprint"] == model.base_fingerprint
        assert stored["source"] == "iter_3.pth"
        assert "LoRA: rank 2" in shown.out
    else:
        again = whole_model(out, torch.float32)
        assert torch.equal(again.seg_projector[0].weight, model.seg_projector[0].weight)
        ids = torch.tensor([[1, 2, 3, *model.processor.added_token_ids]])
        own = model.mllm.model(input_ids=ids).logits
        torch.testing.assert_close(again.mllm.model(input_ids=ids).logits, own, atol=1e-5, rtol=0)
        assert again.processor.added_token_ids == model.processor.added_token_ids


def test_untrained_lora_is_noted(call, tiny, tmp_path) -> None:
    model = MODELS.build(tiny.model)
    meta = {**provenance(model, tmp_path), "cfg": tiny.pretty_text}
    payload = {"state_dict": model.trained_state_dict(), "meta": meta}
    write_atomically(payload, tmp_path / "iter_0.pth")
    ended = call("convert", tmp_path / "iter_0.pth", tmp_path / "out", "--to", "sa2va")
    assert ended.code == 0, ended.err
    assert "note: every LoRA B is zero" in ended.out
    stored = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert any("every LoRA B is zero" in note for note in stored["notes"])
    shown = call("inspect_checkpoint", tmp_path / "iter_0.pth")
    assert "14 of them change nothing (B is zero)" in shown.out


# -------------------------------------------------------------------- a checkpoint of the reference


@pytest.mark.parametrize("to", TARGETS)
def test_checkpoint_of_the_reference_to(call, f7, config, tmp_path, to) -> None:
    out = tmp_path / "out"
    ended = call("convert", f7, out, "--to", to, "--config", config, *FLOAT32)
    assert ended.code == 0, ended.err
    assert "a training checkpoint of the reference, raw weights, iteration 12192" in ended.out
    assert "note: 14 frozen tensors replaced" in ended.out
    shown = call("inspect_checkpoint", out)
    assert shown.code == 0, shown.err
    assert WHAT[to] in shown.out
    if to in ("adapter", "trainable"):
        assert "LoRA: rank 8, alpha 16, 21 layers" in shown.out
        assert "trained: LoRA, token rows, " in shown.out
        assert "whole tables: model.language_model.embed_tokens (600, 96), lm_head" in shown.out
    else:
        assert "held: MLLM vision encoder, MLLM projector, MLLM embeddings" in shown.out
        assert "SAM2 video memory" in shown.out
        assert "made from, iteration: 12192" in shown.out
    if to == "trainable":
        assert "iter: 12192" in shown.out
        assert "frozen tensors replaced: 14" in shown.out
        again, report = build_model_from_checkpoint(out)
        assert len(again.changed_frozen) == 14
        assert any("14 frozen tensors replaced" in note for note in report.notes)


def test_lora_kept_and_options(call, f7, config, tmp_path) -> None:
    out = tmp_path / "out"
    options = ("--cfg-options", "model.mllm.lora.lora_alpha=32")
    ended = call("convert", f7, out, "--to", "sa2va", "--config", config, "--lora=keep", *options)
    assert ended.code == 0, ended.err
    assert "used 32 (model.mllm.lora.lora_alpha), a scale of 4" in ended.out
    assert json.loads((out / "adapter" / "adapter_config.json").read_text())["lora_alpha"] == 32
    assert json.loads((out / "provenance.json").read_text())["lora"] == "keep"
    published = load_file(config.with_name("F1") / "model.safetensors")
    own = load_file(out / "model.safetensors")
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(own[name], published[name])


# ---------------------------------------------------------------------------------- a whole folder


@pytest.mark.parametrize("to", ["sa2va", "native"])
def test_whole_folder_to(call, f1, tmp_path, to) -> None:
    out = tmp_path / "out"
    ended = call("convert", f1, out, "--to", to)
    assert ended.code == 0, ended.err
    assert "note:" not in ended.out
    ended = call("inspect_checkpoint", f1, "--diff", out)
    assert ended.code == 0, ended.out
    assert ended.out.endswith("\nno difference\n")


# ------------------------------------------------------------------------------------------ errors


def test_errors(call, ours, f1, f7, config, tmp_path) -> None:
    out = tmp_path / "out"
    text = call("convert", f7, out, "--to", "sa2va").refused("ConfigError")
    assert "without --config: it does not say which base it stands on" in text
    assert "model.mllm.lora.lora_alpha=" in text
    for path in (ours[0], f1):
        text = call("convert", path, out, "--to", "native", "--cfg-options", "model.mllm.lora.r=4")
        assert "--cfg-options without --config (model.mllm.lora.r)" in text.refused("ConfigError")
    ended = call("convert", f1, out, "--to", "native", "--config", config)
    assert "a whole model" in ended.refused("ConfigError")
    for to in ("adapter", "trainable"):
        text = call("convert", f1, out, "--to", to).refused("CheckpointError")
        assert "does not say what was trained" in text
    text = call("convert", f1, out, "--to", "sa2va", "--lora", "keep").refused("ConfigError")
    assert "without --lora keep" in text
    text = call("convert", tmp_path / "iter_9.pth", out, "--to", "sa2va").refused("CheckpointError")
    assert "no checkpoint at" in text
    text = call("convert", f1 / "model.safetensors", out, "--to", "sa2va")
    assert "holds base weights" in text.refused("CheckpointError")
    (tmp_path / "there").write_text("mine")
    text = call("convert", ours[0], tmp_path / "there", "--to", "sa2va").refused("CheckpointError")
    assert "exists" in text
    text = call("inspect_checkpoint", tmp_path / "iter_9.pth").refused("CheckpointError")
    assert "no file or folder" in text
    assert call("convert", f1, out, "--to", "gguf").code == 2
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


# -------------------------------------------------------------------------------------- inspection


def test_inspection_of_checkpoints(call, ours, f7) -> None:
    shown = call("inspect_checkpoint", ours[0])
    assert shown.code == 0
    assert "a training checkpoint of this project" in shown.out
    assert "iter: 3" in shown.out
    assert "LoRA: rank 2, alpha 4, 14 layers" in shown.out
    assert "trained: LoRA, token rows, MLLM projector, [SEG] projector" in shown.out
    assert "format: sa2va-vessel/1" in shown.out
    shown = call("inspect_checkpoint", f7)
    assert "a training checkpoint of the reference" in shown.out
    assert "iter: 12192" in shown.out
    assert "experiment_name: sa2va_vessel_finetune" in shown.out
    assert "LoRA: rank 8, alpha not stored, 21 layers\n" in shown.out
    assert "lm_head (600, 96)" in shown.out
    assert "format:" not in shown.out


def test_inspection_of_base_weights(call, f1, shared_dir) -> None:
    bases = shared_dir / "reference" / "F8_bases"
    shown = call("inspect_checkpoint", bases / "internvl3_original").out
    assert "InternVL as OpenGVLab publishes it" in shown
    assert "language model vocab_size: 595" in shown
    shown = call("inspect_checkpoint", bases / "sam2_original" / "tiny.pt").out
    assert "SAM2 as Meta publishes it" in shown
    assert "SAM2 video memory" in shown
    shown = call("inspect_checkpoint", f1).out
    assert "a released Sa2VA" in shown
    total = next(line for line in shown.splitlines() if line.startswith("all "))
    # 4,722,754 in the file; the Fourier basis of 2 x 128 is held twice by transformers.
    assert total.split()[2] == f"{4_722_754 + 2 * 128:,}"


# ----------------------------------------------------------------------------------------- --diff


def test_one_changed_value_is_found(call, f1, tmp_path) -> None:
    other = tmp_path / "F1"
    copied = load_file(f1 / "model.safetensors")
    name = "text_hidden_fcs.2.bias"
    copied[name][3] = copied[name][3].float() + 0.25
    size = float(copied[name][3] - load_file(f1 / "model.safetensors")[name][3])
    other.mkdir()
    (other / "config.json").write_text((f1 / "config.json").read_text())
    save_file(copied, other / "model.safetensors")
    ended = call("inspect_checkpoint", f1, "--diff", other)
    assert ended.code == 1
    assert "no difference" not in ended.out
    assert "other values: [SEG] projector\n" in ended.out
    row = next(line for line in ended.out.splitlines() if line.startswith("[SEG] projector"))
    assert row.split()[2:7] == ["3", "1", "0", "0", f"{size:.3g}"]
    assert "only in" not in ended.out.split("\n\n")[-1]


def test_weights_of_a_diverged_training(call, ours, tmp_path) -> None:
    payload = read_checkpoint(ours[0])
    name = next(name for name in payload["state_dict"] if "seg_projector" in name)
    payload["state_dict"][name].flatten()[0] = torch.nan
    del payload["layout"]
    write_atomically(payload, tmp_path / "nan.pth")
    ended = call("inspect_checkpoint", tmp_path / "nan.pth", "--diff", tmp_path / "nan.pth")
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "no difference")
    ended = call("inspect_checkpoint", ours[0], "--diff", tmp_path / "nan.pth")
    assert ended.code == 1
    assert "other values: [SEG] projector\n" in ended.out
    row = next(line for line in ended.out.splitlines() if line.startswith("[SEG] projector"))
    assert row.split()[2:4] == ["3", "1"]
    assert row.split()[6] == "inf"


def test_bfloat16_and_float32_copies_are_equal(call, f1, tmp_path) -> None:
    ended = call("convert", f1, tmp_path / "wide", "--to", "sa2va", *FLOAT32)
    assert ended.code == 0, ended.err
    wide = load_file(tmp_path / "wide" / "model.safetensors")
    assert {tensor.dtype for tensor in wide.values()} == {torch.float32}
    ended = call("inspect_checkpoint", f1, "--diff", tmp_path / "wide")
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "no difference")


def test_rounding_of_a_whole_folder_is_noted(call, f1, tmp_path) -> None:
    assert "note:" not in call("convert", f1, tmp_path / "wide", "--to", "sa2va", *FLOAT32).out
    ended = call("convert", tmp_path / "wide", tmp_path / "half", "--to", "sa2va")
    assert ended.code == 0, ended.err
    assert "note: stored in float32 and written in bfloat16: MLLM vision encoder, " in ended.out


def test_exports_of_different_checkpoints_differ(call, ours, tiny, tmp_path) -> None:
    write_tiny(tiny, tmp_path / "other.pth", seed=2)
    for name, path in (("one", ours[0]), ("two", tmp_path / "other.pth")):
        assert call("convert", path, tmp_path / name, "--to", "sa2va").code == 0
    ended = call("inspect_checkpoint", tmp_path / "one", "--diff", tmp_path / "two")
    assert ended.code == 1
    last = ended.out.split("\n\n")[-1]
    assert last.startswith(
        "other values: MLLM projector, MLLM embeddings, MLLM head, MLLM language"
    )
    assert "MLLM vision encoder" not in last


def test_different_kinds_share_what_they_share(call, f1, f7) -> None:
    ended = call("inspect_checkpoint", f1, "--diff", f7)
    assert ended.code == 1
    assert "other values: MLLM embeddings, MLLM head, [SEG] projector, SAM2 mask decoder" in (
        ended.out
    )
    assert "only in B: LoRA" in ended.out


def test_trained_weights_differ(call, ours, tiny, tmp_path, monkeypatch) -> None:
    write_tiny(tiny, tmp_path / "other.pth", seed=2)
    monkeypatch.chdir(tmp_path)
    ended = call("inspect_checkpoint", ours[0], "--diff", "other.pth")
    assert (ended.code, ended.err) == (1, "")
    assert "other values: LoRA, token rows, MLLM projector, [SEG] projector" in ended.out
    ended = call("inspect_checkpoint", ours[0], "--diff", ours[0])
    assert (ended.code, ended.err) == (0, "")
