"""Where pretrained files are: a local folder, the hub's cache, or the hub itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from .errors import SetupError

# The bases of HfHubHTTPError are OSError and the root of the HTTP library's own errors, some of
# which (a proxy that refuses) the hub's client lets through. Which library that is has changed
# with its versions, so the class is not imported by name.
_HUB_ERRORS = (*HfHubHTTPError.__bases__, HFValidationError)


def resolve(
    path: str | Path,
    *,
    key: str,
    allow_patterns: Sequence[str],
    is_complete: Callable[[Path], bool],
    expected: str,
) -> Path:
    """Returns the local folder of ``path``; a hub id is looked up in the cache, then fetched.

    Args:
        path: folder or hub id. It is taken for a folder, and never asked for on the hub, if it
            starts with ``.``, ``/`` or ``~``, has more than one slash, or begins with the name of
            a folder that exists (``data/weights``).
        key: config key that ``path`` stands under, for messages.
        allow_patterns: names of the files to fetch from the hub.
        is_complete: whether a cached snapshot holds all that is needed; it may hold less, because
            tokenizer and weights of one model are fetched apart.
        expected: what should be in the folder, for messages.

    Raises:
        SetupError: it is a file, there is no such folder, or the hub id cannot be had. It comes
            at once where there is no network, and its cause is the hub's error.
    """
    folder = Path(os.path.expanduser(path))
    if path and os.path.isdir(folder):
        return folder
    if os.path.isfile(folder):
        raise SetupError(
            found=f"{key} = '{path}' is a file",
            expected=f"a folder with {expected}",
            fix=f"set {key} to the file's folder, '{folder.parent}'",
        )
    if _looks_local(path):
        raise SetupError(
            found=f"{key} = '{path}': no folder {folder.absolute()}",
            expected=f"a folder with {expected}",
            fix=f"download the model there, or set {key} to another folder or a hub id",
        )
    # Asked for through from_pretrained, a hub id without network is tried file by file, each with
    # retries: minutes until the error. One snapshot of all files fails at once, and says why.
    try:
        cached = Path(snapshot_download(path, allow_patterns=allow_patterns, local_files_only=True))
        if is_complete(cached):
            return cached
    except _HUB_ERRORS:
        pass  # not in the cache, or no hub id at all: the call below says so in its error
    try:
        return Path(snapshot_download(path, allow_patterns=allow_patterns))
    except _HUB_ERRORS as error:
        reason = str(error).strip().splitlines()
        raise SetupError(
            found=f"{key} = '{path}': no such folder, and not to be had from the hub "
            f"({type(error).__name__}: {reason[0] if reason else 'no reason given'})",
            expected=f"a local folder, or a hub id that is cached or can be downloaded, with "
            f"{expected}",
            fix="check the name and the network, or download the model on a machine with network "
            f"access and set {key} to that folder",
        ) from error


def _looks_local(path: str | Path) -> bool:
    """Whether ``path`` can only be meant as a folder; hub ids are ``name`` or ``owner/name``."""
    if isinstance(path, Path) or path.startswith((".", "/", "~")) or path.count("/") > 1:
        return True
    first, slash, _ = path.partition("/")
    return bool(slash) and os.path.isdir(first)
