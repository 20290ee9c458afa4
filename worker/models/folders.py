"""The server's folders of models on this machine: which path belongs to which place, and what lies there.

Everything here blocks, briefly but for `Folders.scan`, which belongs in a thread.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from worker.errors import ConfigError, InvalidJob
from worker.mentions import Place
from worker.models.layout import FAMILIES, LAYOUTS, WHOLE_FOLDERS, Family, Layout, family_of, is_model_name

OURS = ".sd-worker"
"""The folder below that of the models where the worker keeps what it knows of them."""

PART_MOST = 255
"""Bytes of the longest file name that file systems take."""

PATH_MOST = 4000
_LEFT_FOR_SUFFIXES = 40
_PARTIAL = re.compile(r"(\..+\.[0-9a-f]{8}\.part)(\..+)?", re.DOTALL)
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class File:
    """A model file as it lies there: ``size`` in bytes. A ``link`` points at a file that lies elsewhere."""

    path: Path
    size: int
    mtime_ns: int
    link: bool = False


@dataclass(slots=True)
class Scan:
    """All that lies in the folders: model files by place, what transfers left, and the bytes of everything else.

    ``leftovers`` are partial files and what lies beside them under a name that begins with theirs, with the bytes
    that each takes on disk. Not ``complete`` when a folder could not be read: then a missing file may be there.
    """

    files: dict[Place, File] = field(default_factory=dict)
    leftovers: dict[Path, int] = field(default_factory=dict)
    strays: int = 0
    complete: bool = True


class Folders:
    """``root`` is the folder of the server's models; ``exceptions`` names other folders for some kinds, absolute."""

    def __init__(self, root: Path, layout: Layout, exceptions: Mapping[str, Path] | None = None) -> None:
        self.root = Path(os.path.realpath(root))
        self.layout = layout
        self._exceptions = {layout.kind(kind): Path(path) for kind, path in (exceptions or {}).items()}

    @property
    def ours(self) -> Path:
        """Where the index lies."""
        return self.root / OURS

    def written(self) -> tuple[Path, ...]:
        """The other folders that the server fills, whether they exist or not."""
        return tuple(_absolute(self.root, word) for word in self.layout.written)

    def canonical(self, place: Place) -> Place:
        """The place under the one name that its kind has here. Raises `InvalidJob` for a kind without a folder."""
        return Place(self.layout.kind(place.kind), place.name)

    def folder(self, kind: str) -> Path:
        """Where new files of a kind go; it may not exist yet. Raises `InvalidJob` for a kind without a folder."""
        known = self.layout.kind(kind)
        return self._exceptions.get(known) or _absolute(self.root, self.layout.shelving(known).target)

    def folders(self, kind: str) -> tuple[Path, ...]:
        """Where the server looks for files of a kind, in its order. Raises `InvalidJob` for one without a folder."""
        known = self.layout.kind(kind)
        if known in self._exceptions:
            return (self._exceptions[known],)
        return tuple(_absolute(self.root, word) for word in self.layout.shelving(known).folders)

    def path(self, place: Place) -> Path:
        """Where the file of a place lies, or would be put: always below the folder of its kind.

        Raises `InvalidJob` for a kind without a folder, and for a name that is none, that leads out of its folder,
        also by a symbolic link on the way, or that no file system takes.
        """
        wrong = wrong_name(place.name)
        if wrong:
            raise InvalidJob(f"the model name {place.name[:300]!r} {wrong}", field="models")
        folders = self.folders(place.kind)
        found = next((f for f in folders if os.path.lexists(f / place.name)), None) if len(folders) > 1 else folders[0]
        real = os.path.realpath(found or self.folder(place.kind))
        path = Path(real, place.name)
        if os.path.realpath(path.parent) != str(path.parent):
            raise InvalidJob(f"the model name {place.name!r} leads through a link", field="models")
        if len(os.fsencode(path)) > PATH_MOST:
            raise InvalidJob(f"the model name {place.name[:300]!r} is too long", field="models")
        return path

    def place_of(self, path: Path) -> Place | None:
        """The place of a file that need not exist; None for one that the server would not find, or not as this one."""
        real = Path(os.path.realpath(path.parent), path.name)
        kinds = self._kinds()
        for above in real.parents:
            kind = kinds.get(above, ("", 0))[0]
            if not kind and above.parent == self.root and self._is_own_kind(above.name):
                kind = above.name
            if kind:
                place = Place(kind, real.relative_to(above).as_posix())
                return place if not wrong_name(place.name) and self.path(place) == real else None
        return None

    def partial(self, place: Place, key: str) -> Path:
        """Where the bytes of a place gather: hidden, beside the file to be, and told apart by what ``key`` names.

        Room is left in the name for a suffix of two words. Raises as `path`.
        """
        path = self.path(place)
        mark = hashlib.sha256(f"{place}\n{key}".encode()).hexdigest()[:8]
        stem = os.fsencode(path.name)[: PART_MOST - _LEFT_FOR_SUFFIXES - len(".12345678.part")]
        return path.with_name(f".{stem.decode(errors='ignore')}.{mark}.part")

    def tidy(self, path: Path) -> None:
        """Remove the folders above a file that is gone, up to that of its kind, as long as they are empty."""
        kinds = self._kinds()
        for folder in path.parents:
            if folder in kinds or folder.parent == self.root or not _is_below(folder, self._roots(kinds)):
                return
            try:
                folder.rmdir()
            except OSError:
                return

    def scan(self) -> Scan:
        """Look at everything, in the root and in the folders outside of it.

        A file with a model's extension in a folder of a kind, or below it, is a model. Not so hidden ones, those in a
        folder that is one model of many files (as diffusers and Hugging Face's cache make them), names that are no
        UTF-8, and one that another of the same name hides: these are strays. A symbolic link to a file is a model
        that lies elsewhere; links to folders below a kind's are not followed. Raises nothing.
        """
        return _Walk(self, self._kinds()).walked()

    def _kinds(self) -> dict[Path, tuple[str, int]]:
        """The real folders of all kinds that are named or there, with their rank in the server's order."""
        found: dict[Path, tuple[str, int]] = {}
        for kind in sorted(self.layout.kinds.keys() | self._exceptions.keys()):
            for rank, folder in enumerate(self.folders(kind)):
                found.setdefault(Path(os.path.realpath(folder)), (kind, rank))
        for folder in self._own_folders():
            found.setdefault(Path(os.path.realpath(folder)), (folder.name, 0))
        return found

    def _own_folders(self) -> list[Path]:
        """The folders of an open layout that are kinds of their own, links to such included."""
        if not self.layout.open:
            return []
        try:
            with os.scandir(self.root) as entries:
                return [Path(e.path) for e in entries if self._is_own_kind(e.name) and _is_folder(e, links=True)]
        except OSError:
            return []

    def _is_own_kind(self, name: str) -> bool:
        if not self.layout.open or name in self.layout.kinds or name in self._exceptions:
            return False
        try:
            return self.layout.kind(name) == name
        except InvalidJob:
            return False

    def roots(self) -> list[Path]:
        """The real folders from which all kinds are reached, none below another."""
        return self._roots(self._kinds())

    def _roots(self, kinds: Mapping[Path, tuple[str, int]]) -> list[Path]:
        roots: list[Path] = []
        for path in sorted([self.root, *kinds], key=lambda p: len(p.parts)):
            if not _is_below(path, roots):
                roots.append(path)
        return roots


class _Walk:
    def __init__(self, folders: Folders, kinds: Mapping[Path, tuple[str, int]]) -> None:
        self._folders = folders
        self._kinds = kinds
        self._ranks: dict[Place, int] = {}
        self.scan = Scan()

    def walked(self) -> Scan:
        todo: list[tuple[Path, str, int, str]] = [
            (root, *self._kinds.get(root, ("", 0)), "") for root in self._folders._roots(self._kinds)
        ]
        while todo:
            folder, kind, rank, prefix = todo.pop()
            entries = self._entries(folder, kind)
            if prefix and any(entry.name in WHOLE_FOLDERS for entry in entries):
                kind = ""
            for entry in entries:
                if not _is_folder(entry):
                    self._look(entry, kind, rank, prefix)
                elif entry.name != OURS or folder != self._folders.root:
                    todo.append(self._below(Path(entry.path), kind, rank, prefix))
        return self.scan

    def _entries(self, folder: Path, kind: str) -> list[os.DirEntry[str]]:
        """What lies in a folder; one that cannot be read matters only where models may be."""
        try:
            with os.scandir(folder) as entries:
                return list(entries)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError:
            if kind or any(below.is_relative_to(folder) for below in self._kinds):
                self.scan.complete = False
            return []

    def _below(self, folder: Path, kind: str, rank: int, prefix: str) -> tuple[Path, str, int, str]:
        """The folder with its kind: its own, or that of the folder that it lies in."""
        if folder in self._kinds:
            return (folder, *self._kinds[folder], "")
        if not kind or folder.name.startswith("."):
            return folder, "", 0, ""
        return folder, kind, rank, f"{prefix}{folder.name}/"

    def _look(self, entry: os.DirEntry[str], kind: str, rank: int, prefix: str) -> None:
        try:
            link = entry.is_symlink()
            found = entry.stat()
        except OSError:
            return
        if not stat.S_ISREG(found.st_mode):
            return
        taken = 0 if link else found.st_blocks * _BLOCK
        if _PARTIAL.fullmatch(entry.name) and not link:
            self.scan.leftovers[Path(entry.path)] = taken
        elif kind and is_model_name(entry.name) and not wrong_name(prefix + entry.name):
            file = File(Path(entry.path), found.st_size, found.st_mtime_ns, link)
            self._found(Place(kind, prefix + entry.name), rank, file, taken)
        else:
            self.scan.strays += taken

    def _found(self, place: Place, rank: int, file: File, taken: int) -> None:
        """Take the file unless the server finds another of this name before it."""
        known = self.scan.files.get(place)
        if known is None or rank < self._ranks[place]:
            self.scan.files[place], self._ranks[place] = file, rank
            self.scan.strays += 0 if known is None or known.link else known.size
        else:
            self.scan.strays += taken


def partial_of(leftover: Path) -> Path:
    """The partial file that a leftover is, or lies beside."""
    found = _PARTIAL.fullmatch(leftover.name)
    return leftover.with_name(found[1]) if found else leftover


def wrong_name(name: str) -> str:
    """Why this cannot be the name of a model below the folder of its kind; empty when it can."""
    if not name or any(part in ("", ".", "..") for part in name.split("/")):
        return "is no name of a file"
    if any(part.startswith(".") for part in name.split("/")):
        return "has a hidden part, which servers do not look at"
    if "\\" in name or any(ord(c) < 32 or ord(c) == 127 for c in name):
        return "has characters that are not taken"
    try:
        parts = [part.encode() for part in name.split("/")]
    except UnicodeEncodeError:
        return "is no UTF-8"
    return "is too long" if any(len(part) > PART_MOST for part in parts) else ""


def find_folders(engine: str, root: Path | None, exceptions: Mapping[str, Path] | None = None) -> Folders | None:
    """The folders of the server's models: those given, else the usual ones of the engine where they exist.

    ``engine`` is a family or ``auto``, which is told by what the folder holds. None where there is no folder. Raises
    `ConfigError` when it does not tell, or names a kind that the server has no folder for.
    """
    if root is None:
        homes = [Path(LAYOUTS[family].home) for family in FAMILIES if engine in ("auto", family)]
        there = [home for home in homes if home.is_dir()]
        if len(there) > 1:
            raise ConfigError(f"models lie in {' and '.join(map(str, there))}: set WORKER_ENGINE or WORKER_MODELS_DIR")
        if not there:
            return None
        root = there[0]
    family = next((family for family in FAMILIES if family == engine), None)
    layout = LAYOUTS[family or _told(root)]
    try:
        return Folders(root, layout, exceptions)
    except InvalidJob as error:
        raise ConfigError(f"WORKER_MODELS_DIRS: {error.errors[0].message}") from error


def _told(root: Path) -> Family:
    for family in FAMILIES:
        if os.path.realpath(root) == os.path.realpath(LAYOUTS[family].home):
            return family
    try:
        holds = os.listdir(root)  # noqa: PTH208 - names alone
    except OSError as error:
        raise ConfigError(f"{root} cannot be read: {error.strerror}") from error
    return family_of(str(root), holds)


def _absolute(root: Path, word: str) -> Path:
    """A folder of a layout on this machine; dots are resolved as they stand."""
    return Path(os.path.normpath(root / Path(word).expanduser()))


def _is_folder(entry: os.DirEntry[str], *, links: bool = False) -> bool:
    try:
        return entry.is_dir(follow_symlinks=links)
    except OSError:
        return False


def _is_below(path: Path, roots: list[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)
