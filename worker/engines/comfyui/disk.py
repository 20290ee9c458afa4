"""The server's folders, where this worker reaches them itself. Everything here blocks and belongs in a thread.

A folder counts as shared only when a file that the server stored there was found at that place, and removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from worker.engines.comfyui.outputs import Item

OURS = "sd-worker"
"""The folder below each of the server's that everything of ours lies in."""

GRAIN_S = 0.01
"""By how much a file's time may lie before that of a clock that was read earlier: the kernel's tick."""

_FLAGS = {"output": "--output-directory", "temp": "--temp-directory", "input": "--input-directory"}
_BASE = "--base-directory"


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders by type as far as they are shared, and where each kind of model lies."""

    shared: Mapping[str, Path] = field(default_factory=dict)
    models: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def path(self, item: Item) -> Path | None:
        """Where a file lies; None where its folder is not shared, or where it would lie outside of it."""
        root = self.shared.get(item.type)
        if root is None:
            return None
        path = Path(os.path.realpath(root / item.subfolder / item.filename))
        return path if path.is_relative_to(root) and path != root else None

    def read(self, item: Item) -> bytes | None:
        """The bytes of a file; None where it cannot be read here."""
        path = self.path(item)
        try:
            return path.read_bytes() if path is not None else None
        except OSError:
            return None

    def model(self, folder: str, name: str) -> Path | None:
        """A model file as the server finds it, the first of its places first; None where we cannot see it."""
        places = (Path(root, name) for root in self.models.get(folder, ()))
        return next((path for path in places if os.access(path, os.R_OK) and path.is_file()), None)

    def sees(self, folder: str) -> bool:
        """Whether any place of a folder's models is here too."""
        return any(Path(root).is_dir() for root in self.models.get(folder, ()))

    def remove(self, items: Iterable[Item], since_s: float | None) -> int:
        """Remove the files that a prompt made; how many could not be. What is gone already is no failure.

        Previews go in any case; a file among the outputs only when it was written at or after ``since_s``, in
        seconds since 1970: a node may name one that it only read.
        """
        failed = 0
        for item in items:
            path = self.path(item) if item.type != "input" else None
            try:
                if path is None or not path.exists():
                    continue
                if item.type == "temp" or (since_s is not None and path.stat().st_mtime >= since_s - GRAIN_S):
                    path.unlink()
            except OSError:
                failed += 1
        return failed

    def clear(self, name: str = "") -> int:
        """Remove one of our own folders, and what holds them after the last one, or all; how many could not be."""
        failed = 0
        for root in self.shared.values():
            place = root / OURS / name if name else root / OURS
            shutil.rmtree(place, ignore_errors=True)
            failed += place.exists()
            with contextlib.suppress(OSError):
                (root / OURS).rmdir()
        return failed


def candidates(argv: Sequence[str], paths: Mapping[str, Sequence[str]], cwd: str | None) -> dict[str, list[Path]]:
    """Where the server's folders may be, the likeliest first: by its flags, beside its models, beside its program.

    ``paths`` are its model folders; those of custom nodes lie in its base folder. ``cwd`` is where it was started.
    """
    bases = [Path(p).parent for p in paths.get("custom_nodes", ())]
    if (base := _flag(argv, _BASE)) is not None:
        bases.insert(0, Path(cwd or "", base))
    if argv and (cwd is not None or Path(argv[0]).is_absolute()):
        bases.append(Path(cwd or "", argv[0]).parent)
    found: dict[str, list[Path]] = {}
    for kind, flag in _FLAGS.items():
        given = _flag(argv, flag)
        places = [Path(cwd or "", given)] if given is not None else bases
        places = [p / kind for p in places] if given is None or kind == "temp" else places
        found[kind] = [p for p in dict.fromkeys(places) if p.is_absolute()]
    return found


def _flag(argv: Sequence[str], name: str) -> str | None:
    """The value of a flag, given as the next word or after an equals sign; the last one counts."""
    value = None
    for at, word in enumerate(argv):
        if word == name and at + 1 < len(argv):
            value = argv[at + 1]
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
    return value


def started_in(argv: Sequence[str], proc: Path = Path("/proc")) -> str | None:
    """The working directory of the process that runs with these words; None where it cannot be seen."""
    if not argv:
        return None
    wanted = [os.fsencode(word) for word in argv]
    for directory in proc.iterdir():
        if not directory.name.isdecimal():
            continue
        try:
            words = (directory / "cmdline").read_bytes().removesuffix(b"\0").split(b"\0")
            if words[-len(wanted) :] == wanted:
                return str((directory / "cwd").readlink())
        except OSError:
            continue
    return None


def claimed(places: Iterable[Path], name: str, content: bytes) -> Path | None:
    """The first of the places that holds a file of this name and content, which is removed there."""
    for place in places:
        try:
            path = place / name
            if path.read_bytes() == content:
                path.unlink()
                return Path(os.path.realpath(place))
        except OSError:
            continue
    return None
