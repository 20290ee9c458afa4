"""What a disk has left, and what folders take of it. Everything here blocks; the walks belong in a thread."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

RESERVE = 2_000_000_000
"""Bytes of the writable disk that stay free of everything we know of."""

RECORDS = 8_000_000
"""Bytes of a disk that are left to our own records: the index, its log, and those of transfers."""

_BLOCK = 512


def free_bytes(folder: Path) -> int:
    """Bytes of models that can still be written where this folder lies. Raises `OSError`.

    A model that took the last of them would leave none to record it: it would be refused again and again.
    """
    found = os.statvfs(folder)
    return max(0, found.f_bavail * found.f_frsize - RECORDS)


def cap_of(max_size: int, disk_size: int, others: int = 0) -> int:
    """Bytes that models may take: their own limit, and what the disk as ordered leaves beside all the rest."""
    return max(0, min(max_size, disk_size - RESERVE - others))


def measured(folders: Sequence[Path], within: Path, apart: Sequence[Path]) -> dict[str, int]:
    """The bytes that each folder takes on the file system of ``within``, by its real path.

    Folders that are missing or lie on another file system take none of it and are left out; so are those below
    another one, and what lies in ``apart``, which is counted elsewhere. A file with several names counts once.
    """
    device = _device(within)
    roots: list[Path] = []
    for folder in sorted({Path(os.path.realpath(f)) for f in folders}, key=lambda f: len(f.parts)):
        if _device(folder) == device and not any(folder.is_relative_to(other) for other in (*roots, *apart)):
            roots.append(folder)
    skip = {str(folder) for folder in apart}
    names: set[int] = set()
    return {str(root): _taken(root, device, skip, names) for root in roots}


def _taken(root: Path, device: int | None, skip: set[str], names: set[int]) -> int:
    """Bytes on disk of the files below; ``names`` are the inodes with several names that were counted already."""
    taken = 0
    for found in _files(root, device, skip):
        if found.st_nlink > 1:
            if found.st_ino in names:
                continue
            names.add(found.st_ino)
        taken += found.st_blocks * _BLOCK
    return taken


def _files(root: Path, device: int | None, skip: set[str]) -> Iterator[os.stat_result]:
    """Links are not followed, and other file systems are not entered. What vanishes meanwhile is not there."""
    todo = [str(root)]
    while todo:
        for path, found in _entries(todo.pop()):
            if stat.S_ISREG(found.st_mode):
                yield found
            elif stat.S_ISDIR(found.st_mode) and found.st_dev == device and path not in skip:
                todo.append(path)


def _entries(folder: str) -> list[tuple[str, os.stat_result]]:
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    found.append((entry.path, entry.stat(follow_symlinks=False)))
                except OSError:
                    continue
    except OSError:
        return found
    return found


def _device(folder: Path) -> int | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev if stat.S_ISDIR(found.st_mode) else None
