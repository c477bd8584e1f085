"""Tokenizers: from folders as they are published, the tiny one, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projects.sa2va import hub
from projects.sa2va.errors import ConfigError, SetupError
from projects.sa2va.processing import tokenizer as module
from projects.sa2va.processing.tokenizer import REQUIRED_TOKENS, build_tokenizer

ADDED = ("[SEG]", "<p>", "</p>", "<vp>", "</vp>")
TINY = build_tokenizer({"type": "byte_level"}, ADDED)


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def copy_tokenizer(source: Path, target: Path, leave_out: tuple[str, ...] = ()) -> Path:
    target.mkdir()
    for file in source.iterdir():
        if file.suffix in {".json", ".txt"} and file.name not in leave_out:
            shutil.copyfile(file, target / file.name)
    return target


def pretrained(path: Path | str, added: tuple[str, ...] = ADDED):
    return build_tokenizer({"type": "pretrained", "path": str(path)}, added)


@pytest.mark.parametrize("folder", ["F1_tokenizer", "F1_model"])
def test_existing_tokens_are_found_also_beside_a_config_with_auto_map(shared_dir, folder):
    tokenizer = pretrained(shared_dir / "reference" / folder)
    assert len(tokenizer) == 600
    assert tokenizer.convert_tokens_to_ids(list(ADDED)) == [595, 596, 597, 598, 599]
    assert (tokenizer.pad_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")) == (564, 566)


def test_missing_tokens_are_added_with_the_ids_of_the_reference(shared_dir):
    folder = shared_dir / "reference" / "F8_bases" / "internvl3_original"
    assert len(pretrained(folder, ())) == 595
    tokenizer = pretrained(folder)
    assert tokenizer.convert_tokens_to_ids(list(ADDED)) == [595, 596, 597, 598, 599]
    reference = pretrained(shared_dir / "reference" / "F1_tokenizer")
    text = "<|im_start|>user\n<img><IMG_CONTEXT></img>\nsegment <p>it</p>, [SEG].<|im_end|>"
    assert encode(tokenizer, text) == encode(reference, text)


def test_folder_without_tokenizer_json_gives_the_same_ids(shared_dir, tmp_path):
    # InternVL3's repositories hold vocab.json and merges.txt only.
    source = shared_dir / "reference" / "F8_bases" / "internvl3_original"
    tokenizer = pretrained(copy_tokenizer(source, tmp_path / "slow", ("tokenizer.json",)))
    text = "Please segment the blood vessel in this image. Sure, [SEG].<|im_end|>"
    assert encode(tokenizer, text) == encode(pretrained(source), text)


def test_code_beside_the_tokenizer_is_never_run(shared_dir, tmp_path):
    folder = copy_tokenizer(shared_dir / "reference" / "F1_model", tmp_path / "trap")
    for name in ("configuration_sa2va_chat.py", "modeling_sa2va_chat.py"):
        (folder / name).write_text("raise SystemExit('remote code ran')")
    assert len(pretrained(folder)) == 600
    (folder / "config.json").write_text("{ not read at all")
    assert len(pretrained(folder)) == 600


def test_found_token_that_is_not_special_becomes_so_and_keeps_its_id(shared_dir, tmp_path):
    folder = copy_tokenizer(shared_dir / "reference" / "F1_tokenizer", tmp_path / "plain")
    content = json.loads((folder / "tokenizer.json").read_text())
    entry = next(token for token in content["added_tokens"] if token["content"] == "[SEG]")
    entry["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings_ = json.loads((folder / "tokenizer_config.json").read_text())
    settings_["added_tokens_decoder"]["595"]["special"] = False
    settings_["additional_special_tokens"].remove("[SEG]")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings_))
    (folder / "special_tokens_map.json").unlink()
    assert pretrained(folder, ()).decode([595], skip_special_tokens=True) == "[SEG]"
    tokenizer = pretrained(folder)
    assert len(tokenizer) == 600 and encode(tokenizer, "[SEG]") == [595]
    assert tokenizer.decode([595], skip_special_tokens=True) == ""


def test_byte_level_tokenizer_is_always_the_same_and_short():
    again = build_tokenizer({"type": "byte_level"}, ADDED)
    assert again.get_vocab() == TINY.get_vocab()
    ids = TINY.get_vocab().values()
    assert sorted(ids) == list(range(len(TINY)))
    text = "Please segment the blood vessel in this image."
    assert len(encode(TINY, text)) == 9
    assert TINY.pad_token == "<|endoftext|>" and TINY.eos_token == "<|im_end|>"


@pytest.mark.parametrize("word", module._WORDS)
def test_every_listed_word_is_one_token(word):
    assert len(encode(TINY, word)) == 1


def test_further_words_are_one_token_and_leave_the_others_alone():
    words = [" proximal", " obtuse", "There", " a"]  # "user" has the "us" of " obtuse"
    more = build_tokenizer({"type": "byte_level", "words": words}, ADDED)
    assert all(len(encode(more, word)) == 1 for word in (*words, *module._WORDS))
    assert len(more) > len(TINY) and len({*more.get_vocab().values()}) == len(more)
    text = "There is no proximal obtuse artery in this image."
    assert len(encode(more, text)) <= 12 < len(encode(TINY, text))
    assert more.decode(encode(more, text)) == text


@pytest.mark.parametrize("word", [" (ramus)", "obtuse"])  # the second: by the "us" of "user"
def test_a_word_that_cannot_be_one_token_is_refused(word):
    with pytest.raises(ConfigError, match=rf"words with '{re.escape(word)}', which would not be"):
        build_tokenizer({"type": "byte_level", "words": [" main", word]})


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs", "Cc")), max_size=60))
def test_byte_level_tokenizer_loses_no_text(text):
    kept = TINY.backend_tokenizer.normalizer.normalize_str(text)
    assert TINY.decode(encode(TINY, text), clean_up_tokenization_spaces=False) == kept


@pytest.mark.parametrize("name", [*REQUIRED_TOKENS, *ADDED])
def test_special_tokens_are_one_id_inside_words_too(name):
    token = TINY.convert_tokens_to_ids(name)
    assert encode(TINY, f"x{name}y").count(token) == 1
    assert TINY.decode([token], skip_special_tokens=True) == ""


@pytest.mark.parametrize(
    "added",
    [
        ("[SEG]", "[SEG]"),
        ("[SEG]", ""),
        ("[SEG]", " "),
        ("[SEG]", "my[SEG]"),
        ("<img>2", "[SEG]"),
        ("a[SE", "[SEG]"),  # takes the beginning of the other in "a[SEG]"
    ],
)
def test_names_that_cannot_be_one_token_are_refused(added):
    with pytest.raises(ConfigError, match="added_tokens"):
        build_tokenizer({"type": "byte_level"}, added)


@pytest.mark.parametrize("missing", REQUIRED_TOKENS)
def test_tokenizer_of_another_model_is_refused(shared_dir, tmp_path, missing):
    folder = copy_tokenizer(shared_dir / "reference" / "F1_tokenizer", tmp_path / "other")
    for file in folder.iterdir():
        file.write_text(file.read_text().replace(json.dumps(missing), '"<|other|>"'))
    with pytest.raises(SetupError, match="has no") as caught:
        pretrained(folder)
    assert missing in caught.value.found


def test_missing_folder_file_and_empty_folder_are_named(tmp_path):
    with pytest.raises(SetupError, match="no folder"):
        pretrained(tmp_path / "nowhere")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SetupError, match="is a file"):
        pretrained(tmp_path / "model.safetensors")
    with pytest.raises(SetupError, match="no tokenizer in"):
        pretrained(tmp_path)


def test_broken_tokenizer_file_keeps_its_cause(shared_dir, tmp_path):
    folder = copy_tokenizer(shared_dir / "reference" / "F1_tokenizer", tmp_path / "broken")
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": ')
    with pytest.raises(SetupError, match="can't be read") as caught:
        pretrained(folder)
    assert caught.value.__cause__ is not None


def test_hub_id_comes_from_the_cache_without_asking_the_network(shared_dir, monkeypatch):
    calls = []

    def snapshot(repo_id: str, allow_patterns, local_files_only: bool = False) -> str:
        calls.append((repo_id, local_files_only))
        return str(shared_dir / "reference" / "F1_tokenizer")

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert len(pretrained("some/model")) == 600
    assert calls == [("some/model", True)]


def test_hub_id_that_cannot_be_had_keeps_its_cause(monkeypatch):
    failure = OSError("no route to the hub")

    def snapshot(*args: object, **kwargs: object) -> str:
        raise failure

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    with pytest.raises(SetupError, match="no route to the hub") as caught:
        pretrained("some/model")
    assert caught.value.__cause__ is failure


@pytest.mark.parametrize(
    "cfg",
    [
        {},
        {"type": "byte_levle"},
        {"type": "pretrained"},
        {"type": "pretrained", "path": None},
        {"type": "pretrained", "path": ""},
        {"type": "pretrained", "path": "a/b", "revision": "main"},
        {"type": "byte_level", "path": "a/b"},
        {"type": "byte_level", "words": "main"},
        {"type": "byte_level", "words": [" main", " main"]},
        {"type": "byte_level", "words": ["left main"]},
        {"type": "byte_level", "words": ["\tmain"]},
        {"type": "byte_level", "words": [" artère"]},
        {"type": "pretrained", "path": "a/b", "words": []},
    ],
)
def test_wrong_config_is_refused(cfg):
    with pytest.raises(ConfigError, match=r"processor\.tokenizer"):
        build_tokenizer(cfg)
