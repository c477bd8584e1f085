"""The private folder: no names, nothing outside, nothing old."""

from __future__ import annotations

import io
import os
import time

import pytest

from projects.sa2va.errors import DataError
from projects.sa2va.inference.page.files import PrivateFolder


def test_names_are_not_kept(folder):
    paths = [
        folder.put_upload(io.BytesIO(b"abc"), name)
        for name in ("Smith^John 1950.PNG", "../../x.tif", "Smith", None, "x.Smith")
    ]
    assert [path.name for path in paths] == ["upload.png", "upload.tif", *["upload"] * 3]
    assert len({path.parent for path in paths}) == 5
    assert all(path.read_bytes() == b"abc" and folder.owned(path) == path for path in paths)
    assert oct(paths[0].parent.stat().st_mode)[-3:] == "700"


def test_only_own_files(folder, tmp_path):
    mine = folder.put_upload(io.BytesIO(b"abc"), "x.png")
    link = mine.with_name("link.png")
    link.symlink_to("/etc/passwd")
    for path in ("/etc/passwd", link, mine.parent / ".." / ".." / ".." / "x", mine.parent, ""):
        with pytest.raises(DataError, match="not uploaded"):
            folder.owned(path)


def test_an_upload_is_removed_with_its_folder(folder):
    path = folder.put_upload(io.BytesIO(b"abc"), "x.png")
    folder.remove(path)
    folder.remove(folder.put_upload(io.BytesIO(b"abc"), "x.png"))
    assert [p.name for p in folder.root.rglob("*")] == ["short"]


def aged(path, seconds):
    for one in (path, path.parent):
        os.utime(one, (time.time() - seconds,) * 2)
    return path


def test_sweeping_by_age(tmp_path):
    folder = PrivateFolder(tmp_path, max_seconds=60)
    young = aged(folder.put_upload(io.BytesIO(b"abc"), "x.png"), 30)
    old = aged(folder.put_upload(io.BytesIO(b"abc"), "x.png"), 90)
    left = tmp_path / "tmpabc"  # as Gradio leaves them
    left.touch()
    os.utime(left, (time.time() - 90,) * 2)
    kept = tmp_path / "hash" / "icon.webp"  # Gradio's own
    kept.parent.mkdir()
    kept.touch()
    aged(kept, 90)
    folder.sweep()
    assert young.exists() and kept.exists() and not left.exists() and not old.exists()
    os.utime(old.parent, (time.time() - 90,) * 2)
    folder.sweep()
    assert not old.parent.exists() and young.exists()


def test_sweeping_by_size(tmp_path):
    folder = PrivateFolder(tmp_path, max_bytes=7)
    paths = [aged(folder.put_upload(io.BytesIO(b"abc"), None), 10 - n) for n in range(4)]
    folder.sweep()
    assert [path.exists() for path in paths] == [False, False, True, True]


def test_answers(folder):
    mask, other = folder.put_files([("mask.png", b"m"), ("probability.png", b"p")])
    assert mask.parent == other.parent and other.read_bytes() == b"p"
