"""The tables against published names, an independent table, and transformers' own modules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    Sam2VideoConfig,
    Sam2VideoModel,
)

from projects.sa2va.weights import TensorFiles, tables
from projects.sa2va.weights.key_map import KeyMap
from projects.sa2va.weights.parts import MEMORY, part_of
from projects.sa2va.weights.published_configs import internvl_config

TABLES = {name: table for name, table in vars(tables).items() if isinstance(table, KeyMap)}
EXAMPLES = {"i": "3", "j": "2", "p": "weight", "rest": "some.thing"}


@pytest.fixture(scope="module")
def published(reference: Path) -> dict[str, dict[str, tuple[int, ...]]]:
    """Names and shapes as they are published, by table."""
    bases = reference / "F8_bases"
    f7 = json.loads((reference / "F7_checkpoint" / "keys.json").read_text())
    files = {
        "SA2VA_RELEASED": reference / "F1_model",
        "INTERNVL_CHAT": bases / "internvl3_original",
        "SAM2_META": bases / "sam2_original" / "tiny.pt",
    }
    found = {
        name: {key: entry.shape for key, entry in TensorFiles(path).entries.items()}
        for name, path in files.items()
    }
    return {**found, "REFERENCE_TRAINING": {key: tuple(shape) for key, (_, shape) in f7.items()}}


def our_shapes(table: KeyMap, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    renamed = table.to_ours(shapes)
    assert not (renamed.unknown or renamed.incomplete or renamed.ignored)
    ours: dict[str, tuple[int, ...]] = {}
    for piece in renamed.by_target().values():
        ours |= piece.shapes(shapes.__getitem__)
    return ours


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("SA2VA_RELEASED", 378),
        ("INTERNVL_CHAT", 77),
        ("SAM2_META", 297),
        ("REFERENCE_TRAINING", 185),
    ],
)
def test_published_names_there_and_back(published, name: str, count: int) -> None:
    shapes, table = published[name], TABLES[name]
    assert len(shapes) == count
    ours = our_shapes(table, shapes)
    back = table.to_theirs(ours)
    assert not (back.unknown or back.incomplete)
    theirs = {n: s for p in back.by_target().values() for n, s in p.shapes(ours.get).items()}
    assert theirs == shapes


@pytest.mark.parametrize("name", TABLES)
def test_every_rule_is_reached_and_reasoned(name: str) -> None:
    """No earlier rule takes a rule's names."""
    for rule in TABLES[name].rules:
        assert len(rule.reason) > 5, rule
        names = [theirs.format(**EXAMPLES) for theirs in rule.their_names]
        renamed = TABLES[name].to_ours(names)
        if rule.op == "ignore":
            assert renamed.ignored == dict.fromkeys(names, rule.reason), rule
            continue
        assert [piece.rule for piece in renamed.pieces] == [rule]
        assert set(renamed.pieces[0].sources) == set(names)


# Read only: nothing is exported under their names.
ONE_WAY = (tables.OUR_TRAINING, tables.PEFT_ADAPTER)
# Further names of a weight; exported, it gets the name of the earlier rule (F7 tests which).
TWO_NAMES = {
    "grounding_encoder.sam2_model.memory_encoder.fuser.layers.{i}.gamma",
    *(
        rule.theirs
        for rule in tables.REFERENCE_TRAINING.rules
        if rule.our_names[0].startswith(("mllm.model.language_model.", "mllm.lm_head."))
    ),
}


@pytest.mark.parametrize("name", [n for n, table in TABLES.items() if table not in ONE_WAY])
def test_every_rule_is_reached_from_our_side(name: str) -> None:
    rules = [r for r in TABLES[name].rules if r.op != "ignore" and r.theirs not in TWO_NAMES]
    assert rules
    for rule in rules:
        names = [ours.format(**EXAMPLES) for ours in rule.our_names]
        (piece,) = TABLES[name].to_theirs(names).pieces
        assert piece.rule is rule and set(piece.sources) == set(names)
        assert set(piece.targets) == {theirs.format(**EXAMPLES) for theirs in rule.their_names}


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("INTERNVL_CHAT", ["attn.q_norm.weight", "attn.k_norm.weight"]),
        ("SAM2_META", ["no_obj_embed_spatial", "obj_ptr_tpos_proj.{p}"]),
        (
            "SA2VA_RELEASED",
            ["q_norm.weight", "k_norm.weight", "no_obj_embed_spatial", "tpos_proj.{p}", ".gamma"],
        ),
    ],
)
def test_real_weights_use_every_rule_but(published, name: str, absent: list[str]) -> None:
    """What no fixture has: InternViT-6B, SAM2.1, and Sa2VA's older name of the fuser's scale."""
    used = {piece.rule for piece in TABLES[name].to_ours(published[name]).pieces}
    unused = [r.theirs for r in TABLES[name].rules if r not in used]
    assert len(unused) == len(absent)
    for end in absent:
        assert any(theirs.endswith(end) for theirs in unused), end


def test_both_names_of_the_fuser_scale_are_one_weight() -> None:
    start = "grounding_encoder.sam2_model.memory_encoder.fuser.layers.0."
    ours = "grounding.memory_encoder.memory_fuser.layers.0.scale"
    for name in ("g_weight", "gamma"):
        assert tables.SA2VA_RELEASED.to_ours([start + name]).by_target().keys() == {ours}
    released = tables.SA2VA_RELEASED.to_theirs([ours]).by_target()
    assert released.keys() == {start + "g_weight"}
    meta = tables.SAM2_META.to_theirs([ours]).by_target()
    assert meta.keys() == {"memory_encoder.fuser.layers.0.gamma"}


def test_agreement_with_an_independent_table(reference: Path, released) -> None:
    """shared/reference/F1_model_keys.json was made by running transformers' converters."""
    table = json.loads((reference / "F1_model_keys.json").read_text())["keys"]
    prefix = {"Sam2Model": "grounding.", "InternVLForConditionalGeneration": "mllm."}
    pieces = {n: p for p in tables.SA2VA_RELEASED.to_ours(table).pieces for n in p.sources}
    assert pieces.keys() == table.keys()
    for name, entry in table.items():
        piece, op = pieces[name], entry["op"]
        if entry["native_model"] is None:
            in_memory = "video memory" in op
            assert (part_of(piece.targets[0]) == MEMORY) == in_memory
            assert in_memory or piece.targets[0] == name.replace("text_hidden_fcs", "seg_projector")
            continue
        natives = [prefix[entry["native_model"]] + n for n in entry["native_keys"]]
        assert list(piece.targets) == natives, name
        ours = piece.read(released.__getitem__)
        if op.startswith("row "):
            (whole,), row = ours.values(), int(op.split()[1])
            assert torch.equal(whole[row], released[name][0])
        elif op.startswith("split"):
            parts: tuple[Tensor, ...] = released[name].chunk(3)
            assert all(torch.equal(a, b) for a, b in zip(ours.values(), parts, strict=True))
        else:
            assert op in ("copy", "copy to both")
            assert all(torch.equal(t, released[name]) for t in ours.values())


def test_sam2_names_are_those_of_transformers(reference: Path, published, sam2_sizes) -> None:
    sizes = json.loads((reference / "F1_model_sam2_config.json").read_text())
    attention, encoder = sizes["memory_attention"], sizes["memory_encoder"]
    config = Sam2VideoConfig(
        **json.loads(json.dumps(sam2_sizes)),
        memory_attention_num_layers=attention["num_layers"],
        memory_attention_feed_forward_hidden_size=attention["dim_feedforward"],
        memory_fuser_num_layers=encoder["fuser_layers"],
        enable_occlusion_spatial_embedding=False,
        enable_temporal_pos_encoding_for_object_pointers=False,
    )
    with torch.device("meta"):
        model = Sam2VideoModel(config)
    expected = {f"grounding.{n}": tuple(t.shape) for n, t in model.state_dict().items()}
    assert our_shapes(tables.SAM2_META, published["SAM2_META"]) == expected
    of_sa2va = our_shapes(tables.SA2VA_RELEASED, published["SA2VA_RELEASED"])
    assert {n: s for n, s in of_sa2va.items() if n.startswith("grounding.")} == expected
    native = our_shapes(tables.SAM2_NATIVE, {n.partition(".")[2]: s for n, s in expected.items()})
    assert native == expected


def test_names_of_sam2_1_are_those_of_transformers() -> None:
    """Built at its published size, on no device: only names are compared."""
    with torch.device("meta"):
        model = Sam2VideoModel(Sam2VideoConfig())
    ours = [f"grounding.{name}" for name in model.state_dict()]
    meta = tables.SAM2_META.to_theirs(ours)
    assert not (meta.unknown or meta.incomplete)
    theirs = meta.by_target().keys()
    assert {"no_obj_embed_spatial", "obj_ptr_tpos_proj.weight", "obj_ptr_tpos_proj.bias"} <= theirs
    assert tables.SAM2_META.to_ours(theirs).by_target().keys() == set(ours)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_internvl_names_are_those_of_transformers(reference: Path, qk_norm: bool) -> None:
    folder = reference / "F8_bases" / "internvl3_original"
    published = json.loads((folder / "config.json").read_text())
    published["vision_config"]["qk_normalization"] = qk_norm
    shapes = {n: tuple(t.shape) for n, t in load_file(folder / "model.safetensors").items()}
    if qk_norm:
        layer = "vision_model.encoder.layers.{}.attn.{}_norm.weight"
        shapes |= {layer.format(i, x): (64,) for i in range(2) for x in "qk"}
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(
            InternVLConfig(**internvl_config(published, False, folder))
        )
    expected = {f"mllm.{n}": tuple(t.shape) for n, t in model.state_dict().items()}
    assert our_shapes(tables.INTERNVL_CHAT, shapes) == expected
    for table in (tables.INTERNVL_NATIVE, tables.INTERNVL_HUB):
        theirs = {
            n: s
            for p in table.to_theirs(expected).pieces
            for n, s in p.shapes(expected.get).items()
        }
        assert our_shapes(table, theirs) == expected


W = "mllm.model.language_model.base_model.model"


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        (f"{W}.lm_head.original_module.weight", None),
        (f"{W}.model.embed_tokens.original_module.weight", None),
        (f"{W}.lm_head.modules_to_save.default.weight", "mllm.lm_head.weight"),
        (f"{W}.lm_head.weight", "mllm.lm_head.weight"),
        (
            f"{W}.model.embed_tokens.modules_to_save.default.weight",
            "mllm.model.language_model.embed_tokens.weight",
        ),
        (
            f"{W}.model.layers.1.self_attn.q_proj.base_layer.bias",
            "mllm.model.language_model.layers.1.self_attn.q_proj.bias",
        ),
        (
            f"{W}.model.layers.1.self_attn.q_proj.lora_A.default.weight",
            "mllm.model.language_model.layers.1.self_attn.q_proj.lora_A.weight",
        ),
        (f"{W}.model.norm.weight", "mllm.model.language_model.norm.weight"),
        (
            "mllm.model.language_model.model.norm.weight",
            "mllm.model.language_model.norm.weight",
        ),
    ],
)
def test_names_of_the_references_training(name: str, ours: str | None) -> None:
    renamed = tables.REFERENCE_TRAINING.to_ours([name])
    assert list(renamed.by_target()) == ([ours] if ours else [])
    assert (name in renamed.ignored) == (ours is None)


V = "mllm.model.base_model.model"


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        (f"{V}.lm_head.token_adapter.trainable_tokens_delta.default", "mllm.lm_head.token_rows"),
        (f"{V}.lm_head.token_adapter.base_layer.weight", "mllm.lm_head.weight"),
        (f"{V}.model.a.q_proj.lora_B.default.weight", "mllm.model.a.q_proj.lora_B.weight"),
        (f"{V}.model.a.q_proj.base_layer.weight", "mllm.model.a.q_proj.weight"),
        (f"{V}.model.language_model.norm.weight", "mllm.model.language_model.norm.weight"),
        ("mllm.model.model.language_model.norm.weight", "mllm.model.language_model.norm.weight"),
        ("grounding.model.no_memory_embedding", "grounding.no_memory_embedding"),
        ("seg_projector.0.weight", "seg_projector.0.weight"),
    ],
)
def test_names_of_our_training(name: str, ours: str) -> None:
    assert list(tables.OUR_TRAINING.to_ours([name]).by_target()) == [ours]
