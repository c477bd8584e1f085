"""The private folder: uploads until they are read, the endpoint's answers until they are old."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from ...datasets.image_io import IMAGE_SUFFIXES
from ...errors import DataError

_KEPT_SECONDS = 600.0


class PrivateFolder:
    """Each upload and each answer has a folder of its own below ``root``, with a random name.

    Args:
        root: an existing folder that only this user can read; its owner removes it. Gradio keeps
            the pictures of the page in it, too.
        max_bytes: what is kept at most; the oldest files go first.
        max_seconds: how long a file is kept.
    """

    def __init__(
        self, root: Path, max_bytes: int = 2**30, max_seconds: float = _KEPT_SECONDS
    ) -> None:
        # Gradio compares resolved paths, and a temporary folder may be behind a link.
        self.root = root.resolve()
        self._short = self.root / "short"
        self._short.mkdir(mode=0o700, exist_ok=True)
        self._max_bytes, self._max_seconds = max_bytes, max_seconds

    def put_upload(self, content: BinaryIO, name: str | None) -> Path:
        """Writes an upload; of its name only a known ending is kept."""
        suffix = Path(name or "").suffix.lower()
        path = self._new() / f"upload{suffix if suffix in IMAGE_SUFFIXES else ''}"
        with open(path, "wb") as file:
            shutil.copyfileobj(content, file)
        return path

    def put_files(self, files: Iterable[tuple[str, bytes]]) -> list[Path]:
        """Writes the files of one answer, name and content each."""
        folder = self._new()
        paths = []
        for name, content in files:
            paths.append(folder / name)
            paths[-1].write_bytes(content)
        return paths

    def owned(self, path: str | Path) -> Path:
        """``path`` resolved.

        Raises:
            DataError: it is not below the folder.
        """
        inside = Path(path).resolve()
        if not inside.is_relative_to(self.root) or not inside.is_file():
            raise DataError(
                found="a file that was not uploaded to this page, or is no longer kept",
                expected="a frame that was uploaded just now",
                fix="upload it again",
            )
        return inside

    def remove(self, path: Path) -> None:
        """Removes an upload and its folder."""
        path.unlink(missing_ok=True)
        if path.parent.parent == self._short:
            path.parent.rmdir()

    def sweep(self) -> None:
        """Removes what is old, then the oldest until the rest is within its bytes."""
        now, total = time.time(), 0
        for changed, size, path in sorted(self._listed(), reverse=True):
            total += size
            if now - changed > self._max_seconds or total > self._max_bytes:
                path.unlink(missing_ok=True)
        for folder in self._short.iterdir():
            # Not empty, or gone already: another request is at work in it.
            with contextlib.suppress(OSError):
                if now - folder.stat().st_mtime > self._max_seconds:
                    folder.rmdir()

    def _listed(self) -> list[tuple[float, int, Path]]:
        found = []
        # Gradio leaves an empty file in the root for every file that it hands over.
        for path in itertools.chain(self.root.glob("*"), self._short.rglob("*")):
            with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                if path.is_file():
                    found.append((path.stat().st_mtime, path.stat().st_size, path))
        return found

    def _new(self) -> Path:
        folder = self._short / secrets.token_urlsafe(16)
        folder.mkdir(mode=0o700)
        return folder
