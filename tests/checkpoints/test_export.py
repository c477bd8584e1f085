"""Exports: what they hold, that they read back bit for bit, and that others can read them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, InternVLForConditionalGeneration, Sam2Model

from projects.sa2va.checkpoints import export as module
from projects.sa2va.checkpoints import load_trained, read_checkpoint
from projects.sa2va.checkpoints.convert import convert, whole_model
from projects.sa2va.checkpoints.export import (
    export_adapter,
    export_native,
    export_notes,
    export_sa2va,
)
from projects.sa2va.checkpoints.inspection import compare, open_weights
from projects.sa2va.errors import CheckpointError, ConfigError
from projects.sa2va.models import Sa2VAModel
from tests.models.conftest import PHRASE, picture, predict_inputs

from .over_reference import SMALL, copy_f1, over, whole

WRITTEN = {"iteration": 7, "notes": []}
TOKENIZER_FILES = ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer.json")
CORE = "mllm.model.base_model.model."


@pytest.fixture(scope="module")
def f1(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_f1(reference, tmp_path_factory.mktemp("f1") / "F1")


@pytest.fixture(scope="module")
def exported(loaded: Sa2VAModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Exports the reference's checkpoint once for each setting. Read the folders only."""
    done: dict[tuple, Path] = {}

    def of(to: str, lora: str = "merge", dtype: torch.dtype = torch.float32) -> Path:
        key = (to, lora, dtype)
        if key not in done:
            out = tmp_path_factory.mktemp("exported") / to
            export = {"sa2va": export_sa2va, "native": export_native}[to]
            export(loaded, out, dict(WRITTEN), dtype, lora)
            done[key] = out
        return done[key]

    return of


def tensors(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: value for file in files for name, value in load_file(file).items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert torch.equal(value, other[name]), name


def probabilities(model: Sa2VAModel) -> Tensor:
    inputs = predict_inputs(model.processor, [picture(0, (60, 50))], [[PHRASE]])
    return model(inputs=inputs, mode="predict")[0].probabilities


# ----------------------------------------------------------------------------------- round trips


def test_released_folder_comes_back_tensor_by_tensor(reference: Path, f1: Path, tmp_path) -> None:
    """Video memory included, and by way of transformers' layout too."""
    published = load_file(reference / "F1_model" / "model.safetensors")
    assert len(published) == 378
    convert(f1, tmp_path / "again", "sa2va", dtype=torch.bfloat16)
    assert_equal(tensors(tmp_path / "again"), published)
    convert(tmp_path / "again", tmp_path / "native", "native", dtype=torch.bfloat16)
    convert(tmp_path / "native", tmp_path / "back", "sa2va", dtype=torch.bfloat16)
    assert_equal(tensors(tmp_path / "back"), published)
    for name in TOKENIZER_FILES:
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    model = whole_model(tmp_path / "native", torch.bfloat16)
    assert {p.dtype for p in model.mllm.parameters()} == {torch.bfloat16}
    assert len(model.grounding.unused) == 70


@pytest.mark.parametrize("to", ["sa2va", "native"])
def test_float32_export_reads_back_and_predicts_the_same(exported, loaded, reference, to) -> None:
    model = whole(reference, exported(to), processor=SMALL)
    own, other = probabilities(loaded), probabilities(model)
    assert own.std() > 0.01
    torch.testing.assert_close(other, own, atol=1e-5, rtol=0)
    again = exported(to).with_name(f"{to}_again")
    {"sa2va": export_sa2va, "native": export_native}[to](
        model, again, dict(WRITTEN), torch.float32, "merge"
    )
    for sub in ("", "sam2", "seg_projector"):
        assert_equal(tensors(again / sub), tensors(exported(to) / sub))


def test_shards_and_their_index(exported, loaded, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_SHARD", "2MB")
    out = tmp_path / "out"
    export_sa2va(loaded, out, dict(WRITTEN), torch.float32, "merge")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) > 5
    assert shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    whole_file = tensors(exported("sa2va"))
    found = {}
    for shard in shards:
        assert shard.stat().st_size < 2.1e6 or len(load_file(shard)) == 1
        found |= dict.fromkeys(load_file(shard), shard.name)
    assert index["weight_map"] == found
    size = sum(t.numel() * t.element_size() for t in whole_file.values())
    assert index["metadata"]["total_size"] == size
    assert_equal(tensors(out), whole_file)
    assert all(row.equal for row in compare(open_weights(out), open_weights(exported("sa2va"))))


def test_size_is_that_of_the_tensors(exported, reference) -> None:
    file = exported("sa2va", dtype=torch.bfloat16) / "model.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    shapes = {n: t.numel() for n, t in load_file(reference / "F1_model/model.safetensors").items()}
    assert file.stat().st_size == header + 2 * sum(shapes.values())
    assert (file.stat().st_mode & 0o777) == (file.with_name("config.json").stat().st_mode & 0o777)


# ------------------------------------------------------------------------------------------ LoRA


def test_merged_as_peft_merges(exported, loaded) -> None:
    peft = copy.deepcopy(loaded.mllm.model).float().merge_and_unload()
    own = tensors(exported("native"))
    expected = {n: v for n, v in peft.state_dict().items() if "trainable_tokens" not in n}
    assert own.keys() == expected.keys()
    moved = 0
    for name, value in expected.items():
        torch.testing.assert_close(own[name], value, atol=1e-6, rtol=0)
        before = loaded.state_dict().get(f"{CORE}{name.replace('.weight', '.base_layer.weight')}")
        moved += before is not None and not torch.equal(own[name], before)
    assert moved == 21


def test_lora_kept_beside_an_unmerged_base(exported, loaded, reference) -> None:
    folder = exported("native", "keep")
    state = loaded.state_dict()
    for name, value in tensors(folder).items():
        layer, _, last = name.rpartition(".")
        candidates = [f"{CORE}{layer}{x}.{last}" for x in ("", ".base_layer")]
        candidates.append(f"{CORE}{layer}.token_adapter.base_layer.{last}")
        (own,) = [c for c in candidates if c in state]
        assert torch.equal(value, state[own]), name

    base = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([[5, 17, 595, 42, 596, 7]])
    with torch.no_grad():
        before = base(input_ids=ids).logits
        model = PeftModel.from_pretrained(base, folder / "adapter").eval()
        after = model(input_ids=ids).logits
        expected = loaded.mllm.model(input_ids=ids).logits
    assert (after - before).abs().max() > 1e-2
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=0)

    # The advice that zero.py gives: the folder as the base, and the adapter on it.
    again = over(reference, folder, processor=SMALL)
    report = load_trained(again, read_checkpoint(folder / "adapter"), folder / "adapter")
    assert again.changed_frozen == []
    assert report.iteration == 7
    expected = loaded.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


def test_kept_lora_replaces_nothing_in_a_rounded_base(base, f7, reference, tmp_path) -> None:
    """Float32 tables, as DeepSpeed's masters are, over a base exported in bfloat16."""
    state = {name: value.float() * 1.001 for name, value in f7["state_dict"].items()}
    model = copy.deepcopy(base)
    load_trained(model, {**f7, "state_dict": state}, reference / "F1_tokenizer")
    assert len(model.changed_frozen) == 14
    out = tmp_path / "out"
    export_native(model, out, dict(WRITTEN), torch.bfloat16, "keep")
    again = over(reference, out, processor=SMALL)
    load_trained(again, read_checkpoint(out / "adapter"), out / "adapter")
    assert again.changed_frozen == []


def test_adapter_is_refused_over_another_base(loaded, base, reference, tmp_path) -> None:
    out = tmp_path / "adapter"
    stored = {**WRITTEN, "base_fingerprint": dict(loaded.base_fingerprint)}
    export_adapter(loaded, out, stored)
    model = copy.deepcopy(base)
    load_trained(model, read_checkpoint(out), out)
    expected = loaded.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.get_parameter(f"{CORE}model.vision_tower.encoder.layer.0.mlp.fc1.weight").add_(0.5)
    with pytest.raises(CheckpointError, match="MLLM vision encoder differ"):
        load_trained(other, read_checkpoint(out), out)


def test_adapter_of_a_model_without_lora(f1: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without LoRA"):
        export_adapter(whole_model(f1, torch.bfloat16), tmp_path / "out", {})
    assert list(tmp_path.iterdir()) == []


def test_notes_say_what_is_lost(base, loaded) -> None:
    untrained = export_notes(base, torch.bfloat16, "merge")
    assert sum("every LoRA B is zero" in note for note in untrained) == 1
    notes = export_notes(loaded, torch.bfloat16, "merge")
    assert not any("every LoRA B is zero" in note for note in notes)
    assert notes == [n for n in notes if "21 layers become base + LoRA, rounded to bfloat16" in n]
    assert export_notes(loaded, torch.float32, "merge") == []
    fine = copy.deepcopy(loaded)
    with torch.no_grad():
        fine.seg_projector[0].bias.add_(1e-6)
    assert any(
        note.startswith("1 trained float32 tensors are rounded")
        for note in export_notes(fine, torch.bfloat16, "merge")
    )
    fine.grounding.unused = {}
    assert any("video memory is not there" in n for n in export_notes(fine, None, "merge"))


# ------------------------------------------------------------------------------- for other programs


def test_native_folder_loads_with_plain_transformers(exported, loaded) -> None:
    folder = exported("native")
    model, info = InternVLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.config.image_token_id == loaded.processor.image_token_id
    sam, info = Sam2Model.from_pretrained(folder / "sam2", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    expected = loaded.grounding.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in sam.state_dict().items())


def test_released_config(exported, reference) -> None:
    own = json.loads((exported("sa2va", dtype=torch.bfloat16) / "config.json").read_text())
    published = json.loads((reference / "F1_model" / "config.json").read_text())
    repository = "ByteDance/Sa2VA-InternVL3-8B"
    assert own["auto_map"] == {k: f"{repository}--{v}" for k, v in published["auto_map"].items()}
    left_out = {"auto_map", "max_dynamic_patch", "dynamic_image_size", "output_attentions"}
    for key in (
        published.keys() - left_out - {"llm_config", "vision_config", "transformers_version"}
    ):
        assert own[key] == published[key], key
    for part in ("llm_config", "vision_config"):
        same = own[part].keys() & published[part].keys()
        assert {k: own[part][k] for k in same} == {k: published[part][k] for k in same}
        lost = published[part].keys() - own[part].keys()
        assert lost <= {"use_cache", "layer_types", "initializer_range", "attention_dropout"}, lost
    assert own["max_dynamic_patch"] == 1
    assert own["dynamic_image_size"] is False


@pytest.mark.parametrize("to", ["sa2va", "native"])
@pytest.mark.parametrize("lora", ["merge", "keep"])
def test_no_path_of_this_machine(exported, reference, to, lora) -> None:
    folder = exported(to, lora)
    texts = [file for file in folder.rglob("*") if file.is_file()]
    assert len(texts) > 7
    places = {str(reference), str(reference.parent), str(folder.parent), str(Path.cwd())}
    for file in texts:
        content = file.read_bytes()
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                content = json.dumps(opened.metadata()).encode()
        assert not [place for place in places if place.encode() in content], file


def test_tokenizer_files(exported, reference) -> None:
    folder = exported("sa2va")
    for name in ("vocab.json", "added_tokens.json"):
        published = json.loads((reference / "F1_tokenizer" / name).read_text())
        assert json.loads((folder / name).read_text()) == published
    merges = [
        [line for line in (f / "merges.txt").read_text().splitlines() if not line.startswith("#")]
        for f in (folder, reference / "F1_tokenizer")
    ]
    assert merges[0] == merges[1]
    # The folder itself has a config.json with auto_map, for which transformers wants to run code.
    own = AutoTokenizer.from_pretrained(exported("native"))
    published = AutoTokenizer.from_pretrained(reference / "F1_tokenizer")
    text = "<img><IMG_CONTEXT></img>Please segment the blood vessel.\nSure, [SEG].<|im_end|><vp>"
    assert own(text).input_ids == published(text).input_ids
    assert own.convert_ids_to_tokens(595) == "[SEG]"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["added_tokens_decoder"]["595"]["content"] == "[SEG]"


# ---------------------------------------------------------------------------------------- tied head


@pytest.mark.parametrize("lora", [{"r": 8, "lora_alpha": 16}, None], ids=["lora", "rows_only"])
def test_tied_head_is_written_once(reference: Path, tmp_path: Path, lora: dict | None) -> None:
    published = load_file(reference / "F1_model" / "model.safetensors")
    folder = copy_f1(reference, tmp_path / "F1", tie_word_embeddings=True)
    del published["language_model.lm_head.weight"]
    torch.manual_seed(0)
    module.save_file(published, folder / "model.safetensors")
    model = over(reference, folder, processor=SMALL, mllm={"lora": lora})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "trainable_tokens_delta" in name or ".lora_B." in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    hidden = torch.randn(3, 96)
    for to, export in (("sa2va", export_sa2va), ("native", export_native)):
        out = tmp_path / to
        export(model, out, dict(WRITTEN), torch.float32, "merge")
        assert not [name for name in tensors(out) if "lm_head" in name]
        again = whole(reference, out, processor=SMALL)
        own = model.mllm.logits(hidden)
        torch.testing.assert_close(again.mllm.logits(hidden), own, atol=1e-6, rtol=0)
        torch.testing.assert_close(probabilities(again), probabilities(model), atol=1e-5, rtol=0)
    config = json.loads((tmp_path / "sa2va" / "config.json").read_text())
    assert config["tie_word_embeddings"] is config["llm_config"]["tie_word_embeddings"] is True
    native = InternVLForConditionalGeneration.from_pretrained(tmp_path / "native")
    assert native.lm_head.weight is native.model.language_model.embed_tokens.weight


# ------------------------------------------------------------------------------------------ atomic


def _full(*args: Any, **kwargs: Any) -> None:
    raise module.SafetensorError("Error while serializing: I/O error: No space left on device")


def _interrupted(*args: Any, **kwargs: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("place", "failure", "error"),
    [
        ("save_file", _full, CheckpointError),
        ("save_file", _interrupted, KeyboardInterrupt),
        ("_write_tokenizer", _interrupted, KeyboardInterrupt),
        ("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")), CheckpointError),
    ],
)
@pytest.mark.parametrize("export", [export_sa2va, export_native])
def test_failure_leaves_nothing(loaded, tmp_path, monkeypatch, export, place, failure, error):
    monkeypatch.setattr(f"{module.__name__}.{place}", failure)
    with pytest.raises(error) as caught:
        export(loaded, tmp_path / "out", dict(WRITTEN), torch.bfloat16, "merge")
    assert list(tmp_path.iterdir()) == []
    if error is CheckpointError:
        assert "cannot be written" in caught.value.found


def test_what_does_not_read_back_is_no_export(loaded, tmp_path, monkeypatch) -> None:
    def one_bit(tensors: dict[str, Tensor], file: Path, **kwargs: Any) -> None:
        name = next(iter(tensors))
        write({**tensors, name: tensors[name] + 1}, file, **kwargs)

    write = module.save_file
    monkeypatch.setattr(module, "save_file", one_bit)
    with pytest.raises(CheckpointError, match="does not read back"):
        export_sa2va(loaded, tmp_path / "out", dict(WRITTEN), torch.bfloat16, "merge")
    assert list(tmp_path.iterdir()) == []


def test_existing_out_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("mine")
    for target in (out, out / "config.json"):
        with pytest.raises(CheckpointError, match="exists"):
            convert(tmp_path / "nothing here", target, "sa2va")
    assert (out / "config.json").read_text() == "mine"
