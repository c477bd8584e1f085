"""What is a folder, what is a hub id, and what is said where neither is to be had."""

from __future__ import annotations

import ast
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from projects.sa2va import hub
from projects.sa2va.errors import SetupError
from projects.sa2va.processing.tokenizer import build_tokenizer

HTTP_ERROR = HfHubHTTPError.__bases__[0]  # of the HTTP library, whichever it is


def resolve(path: str | Path, is_complete: Callable[[Path], bool] = lambda _: True) -> Path:
    return hub.resolve(
        path,
        key="model.part.pretrained",
        allow_patterns=("*.json",),
        is_complete=is_complete,
        expected="config.json",
    )


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Relative paths start in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hub_says(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[bool]]:
    """Sets what the cache and the hub answer; returns, per look-up, if it was of the cache only."""

    def answer(cache: Path | Exception, online: Path | Exception) -> list[bool]:
        asked: list[bool] = []

        def snapshot(repo_id: str, *, allow_patterns: Any, local_files_only: bool = False) -> str:
            assert (repo_id, allow_patterns) == ("somebody/model", ("*.json",))
            asked.append(local_files_only)
            outcome = cache if local_files_only else online
            if isinstance(outcome, Exception):
                raise outcome
            return str(outcome)

        monkeypatch.setattr(hub, "snapshot_download", snapshot)
        return asked

    return answer


@pytest.fixture
def never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(*args: Any, **kwargs: Any) -> str:
        raise AssertionError(f"the hub was asked for {args}")

    monkeypatch.setattr(hub, "snapshot_download", snapshot)


@pytest.mark.usefixtures("never_asked")
@pytest.mark.parametrize("path", ["model", "./model", "somebody/model", "a/b/c", "~/model"])
def test_an_existing_folder_is_taken(path, empty_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(empty_folder))
    folder = empty_folder / path.replace("~", ".")
    folder.mkdir(parents=True)
    assert resolve(path).resolve() == folder.resolve()
    assert resolve(folder) == folder


@pytest.mark.usefixtures("never_asked")
@pytest.mark.parametrize(
    "path",
    ["./model", "../model", "/nowhere/model", "~/nowhere", "~nobody-of-that-name/model", "a/b/c"],
)
def test_what_can_only_be_a_folder_is_no_folder(path):
    with pytest.raises(SetupError, match="no folder") as caught:
        resolve(path)
    assert f"model.part.pretrained = '{path}'" in caught.value.found
    assert "hub" not in caught.value.found


@pytest.mark.usefixtures("never_asked")
def test_a_path_below_an_existing_folder_is_no_hub_id(empty_folder):
    (empty_folder / "data").mkdir()
    with pytest.raises(SetupError, match="no folder") as caught:
        resolve("data/weights")
    assert str(empty_folder / "data/weights") in caught.value.found
    with pytest.raises(SetupError, match="no folder"):
        resolve(Path("somebody/model"))


@pytest.mark.usefixtures("never_asked")
def test_a_file_names_its_folder(empty_folder):
    (empty_folder / "weights").mkdir()
    (empty_folder / "weights/model.safetensors").write_bytes(b"")
    with pytest.raises(SetupError, match="is a file") as caught:
        resolve("weights/model.safetensors")
    assert "'weights'" in caught.value.fix


def test_a_complete_cache_needs_no_network(hub_says, empty_folder):
    asked = hub_says(empty_folder, OSError("no network"))
    assert resolve("somebody/model") == empty_folder
    assert asked == [True]


@pytest.mark.parametrize("cache", ["incomplete", "absent"])
def test_the_hub_is_asked_after_the_cache(cache, hub_says, empty_folder):
    missing = LocalEntryNotFoundError("not in the cache")
    asked = hub_says(empty_folder if cache == "incomplete" else missing, empty_folder / "new")
    assert resolve("somebody/model", lambda folder: False) == empty_folder / "new"
    assert asked == [True, False]


@pytest.mark.parametrize(
    "failure",
    [
        OSError("no route to the hub\nand more lines"),
        HTTP_ERROR("no route to the hub"),
        HFValidationError("no route to the hub"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_failure_keeps_its_cause(failure, hub_says):
    hub_says(LocalEntryNotFoundError("not in the cache"), failure)
    with pytest.raises(SetupError, match="not to be had from the hub") as caught:
        resolve("somebody/model")
    assert f"({type(failure).__name__}: no route to the hub)" in caught.value.found
    assert caught.value.__cause__ is failure
    assert "config.json" in caught.value.expected
    assert "model.part.pretrained" in caught.value.fix


def test_a_failure_without_words(hub_says):
    hub_says(LocalEntryNotFoundError("not in the cache"), OSError())
    with pytest.raises(SetupError, match="no reason given"):
        resolve("somebody/model")


def test_a_defect_is_not_taken_for_a_missing_model(hub_says):
    hub_says(LocalEntryNotFoundError("not in the cache"), KeyError("defect"))
    with pytest.raises(KeyError):
        resolve("somebody/model")


@pytest.mark.parametrize("path", ["somebody/some-model", "some-model", "what is this", ""])
def test_without_network_it_fails_at_once(path, empty_folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(empty_folder / "hub"))
    start = time.monotonic()
    with pytest.raises(SetupError, match=f"'{path}'.*not to be had from the hub"):
        resolve(path)
    assert time.monotonic() - start < 2


def test_the_tokenizer_names_both_keys():
    """Its path may have been filled in from the other key, which is the one to correct."""
    with pytest.raises(SetupError) as caught:
        build_tokenizer({"type": "pretrained", "path": "./nowhere"})
    keys = "processor.tokenizer.path (by default that of model.mllm.pretrained)"
    assert keys in caught.value.found and keys in caught.value.fix


def test_it_imports_nothing_of_the_project_but_errors():
    tree = ast.parse(Path(hub.__file__).read_text())
    own = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
    assert own == ["errors"]
