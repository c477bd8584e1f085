"""What a killed run left half written is removed when training starts again."""

from __future__ import annotations

from pathlib import Path

from projects.sa2va.engine.folders import remove, remove_half_written


def test_half_written_files_and_folders_are_removed(tmp_path: Path) -> None:
    (tmp_path / "iter_3.pth").write_bytes(b"whole")
    (tmp_path / ".iter_6.pth.123.tmp").write_bytes(b"half")
    (tmp_path / ".iter_6.pth.tmp").mkdir()
    (tmp_path / ".iter_6.pth.tmp" / "shard.pt").write_bytes(b"half")
    remove_half_written(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["iter_3.pth"]


def test_removing_what_is_gone_is_no_error(tmp_path: Path) -> None:
    remove(tmp_path / "iter_3.pth")
