"""What a disk has left, and what folders take of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from worker.models import measure
from worker.models.measure import RESERVE, cap_of, free_bytes, measured

BLOCK = 4096


def put(path: Path, blocks: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(blocks * BLOCK))
    return path


def test_each_folder_is_measured_once(tmp_path: Path) -> None:
    """Also when it is named twice, lies in another one, or is reached by a link; a file of several names is one."""
    output, temp = tmp_path / "output", tmp_path / "temp"
    image = put(output / "2026" / "1.png", 3)
    os.link(image, output / "2.png")
    put(temp / "x")
    (tmp_path / "linked").symlink_to(output)
    (temp / "loop").symlink_to(temp)
    folders = [output, output / "2026", tmp_path / "linked", temp, tmp_path / "none", image]
    assert measured(folders, tmp_path, ()) == {str(output): 3 * BLOCK, str(temp): BLOCK}


def test_what_is_counted_elsewhere_is_left_out(tmp_path: Path) -> None:
    """The models, wherever they lie to the folders."""
    models = tmp_path / "data" / "models"
    put(models / "loras" / "x.safetensors", 5)
    put(models / "images" / "1.png", 2)
    put(tmp_path / "data" / "1.png")
    assert measured([tmp_path / "data", models / "images"], models, [models]) == {str(tmp_path / "data"): BLOCK}


def test_another_file_system_takes_nothing_of_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is a mount of its own is left out, and so is one below."""
    stat, scandir = Path.stat, os.scandir
    put(tmp_path / "mount" / "x")
    put(tmp_path / "output" / "mount" / "x")
    put(tmp_path / "output" / "y")

    class Elsewhere:
        def __init__(self, found: os.stat_result) -> None:
            self.st_mode, self.st_dev = found.st_mode, found.st_dev + 1

    def status(path: Path, **more: Any) -> Any:
        return Elsewhere(stat(path, **more)) if path.name == "mount" else stat(path, **more)

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.path, self._entry = entry.path, entry

        def stat(self, **more: Any) -> Any:
            found = self._entry.stat(**more)
            return Elsewhere(found) if self._entry.name == "mount" else found

    class Entries:
        def __init__(self, folder: str) -> None:
            self._entries = scandir(folder)

        def __enter__(self) -> Any:
            return map(Entry, self._entries)

        def __exit__(self, *_: object) -> None:
            self._entries.close()

    monkeypatch.setattr(Path, "stat", status)
    monkeypatch.setattr(os, "scandir", Entries)
    found = measured([tmp_path / "mount", tmp_path / "output"], tmp_path, ())
    assert found == {str(tmp_path / "output"): BLOCK}


def test_what_vanishes_meanwhile_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server deletes its temporary files while somebody looks."""
    put(tmp_path / "x")
    real = measure._device
    monkeypatch.setattr(measure, "_device", lambda folder: 7 if folder.name == "gone" else real(folder))
    assert measured([tmp_path / "gone"], tmp_path / "gone", ()) == {str(tmp_path / "gone"): 0}


def test_the_cap_is_the_smaller_of_two() -> None:
    """What models may take, and what the disk leaves beside all else; never less than nothing."""
    assert cap_of(50, RESERVE + 100) == 50
    assert cap_of(500, RESERVE + 100) == 100
    assert cap_of(500, RESERVE + 100, 30) == 70
    assert cap_of(500, RESERVE + 100, 200) == 0


def test_free_bytes_shrink_with_what_is_written(tmp_path: Path) -> None:
    """They are those that may be used without special rights."""
    found = os.statvfs(tmp_path)
    assert 0 < free_bytes(tmp_path) <= found.f_bfree * found.f_frsize
