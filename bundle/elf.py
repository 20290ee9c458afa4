"""What an ELF file asks of the system that loads it: its loader, its libraries and their symbol versions.

Read from the file itself (System V gABI, and the GNU symbol versioning of the Linux Standard Base), since a base that
builds this may have no binutils.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"\x7fELF\x02\x01"
"""64 bits, little endian: x86-64 and AArch64."""
PT_INTERP = 3
SHT_DYNAMIC, SHT_GNU_VERNEED = 6, 0x6FFFFFFE
DT_NEEDED = 1


@dataclass(frozen=True)
class Elf:
    """``loader`` is None but for programs; ``versions`` are pairs of a library and a symbol version wanted of it."""

    loader: str | None
    needed: tuple[str, ...]
    versions: frozenset[tuple[str, str]]


def read(path: Path) -> Elf | None:
    """What this file needs; None when it is no 64-bit ELF file."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return None
        file.seek(0)
        return _Image(file.read()).elf()


def below(folder: Path) -> Iterator[tuple[Path, Elf]]:
    """Every ELF file of a tree, in order of its path."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and (elf := read(path)) is not None:
            yield path, elf


def glibc(elfs: Iterable[Elf]) -> tuple[int, ...]:
    """The oldest glibc that has all symbols they want, as (2, 31); (0,) when they want none."""
    wanted = (version for elf in elfs for _, version in elf.versions if version.startswith("GLIBC_2."))
    return max((version_of(version.removeprefix("GLIBC_")) for version in wanted), default=(0,))


def version_of(text: str) -> tuple[int, ...]:
    """ "2.31" as (2, 31), which compares as versions do. Raises `ValueError` for anything else."""
    return tuple(map(int, text.split(".")))


class _Image:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._sections = list(self._table(0x28, 0x3A, "<IIQQQQIIQQ"))

    def elf(self) -> Elf:
        return Elf(self._loader(), tuple(self._needed()), frozenset(self._versions()))

    def _table(self, offset_at: int, size_at: int, layout: str) -> Iterator[tuple[int, ...]]:
        (offset,) = struct.unpack_from("<Q", self._data, offset_at)
        size, count = struct.unpack_from("<HH", self._data, size_at)
        for index in range(count if offset else 0):
            yield struct.unpack_from(layout, self._data, offset + index * size)

    def _text(self, offset: int) -> str:
        return self._data[offset : self._data.index(b"\0", offset)].decode()

    def _loader(self) -> str | None:
        for kind, _, offset, *_ in self._table(0x20, 0x36, "<IIQQQQQQ"):
            if kind == PT_INTERP:
                return self._text(offset)
        return None

    def _of_kind(self, kind: int) -> Iterator[tuple[int, int, int]]:
        """(offset, size, offset of its strings) of each section of this kind."""
        for section in self._sections:
            if section[1] == kind:
                yield section[4], section[5], self._sections[section[6]][4]

    def _needed(self) -> Iterator[str]:
        for offset, size, strings in self._of_kind(SHT_DYNAMIC):
            for at in range(offset, offset + size, 16):
                tag, value = struct.unpack_from("<QQ", self._data, at)
                if tag == DT_NEEDED:
                    yield self._text(strings + value)

    def _versions(self) -> Iterator[tuple[str, str]]:
        for start, _, strings in self._of_kind(SHT_GNU_VERNEED):
            at, more = start, 1
            while more:
                _, count, file, first, more = struct.unpack_from("<HHIII", self._data, at)
                library, inner = self._text(strings + file), at + first
                for _ in range(count):
                    _, _, _, name, step = struct.unpack_from("<IHHII", self._data, inner)
                    yield library, self._text(strings + name)
                    inner += step
                at += more
