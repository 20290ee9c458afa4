"""What the container allows and what the kernel took: memory limits and out-of-memory kills, by cgroup v2 or v1."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
KIB = 1024
UNLIMITED = 1 << 60
"""cgroup v1 writes some number near 2^63 where there is no limit."""


def container_memory() -> int:
    """Bytes that this container may hold: the least of its cgroup's limits, else the machine's memory."""
    limits = [limit for folder in _folders() for limit in [_limit_of(folder)] if limit is not None]
    return min([*limits, _machine_memory()])


def oom_kills() -> int | None:
    """How many processes of this container the kernel has killed for memory so far; None where nobody can tell."""
    for folder in _folders():
        for name in ("memory.events", "memory.oom_control"):
            count = _entry(folder / name, "oom_kill")
            if count is not None:
                return count
    return None


def _folders() -> Iterator[Path]:
    """Our memory cgroup and those around it, innermost first.

    Where the path cannot be found under the mount, as without a cgroup namespace, its visible part counts.
    """
    for root, path in _memberships():
        for part in (PurePosixPath(path), *PurePosixPath(path).parents):
            folder = root / str(part).lstrip("/")
            if folder.is_dir():
                yield folder


def _memberships() -> list[tuple[Path, str]]:
    """Roots of the hierarchies that account for memory, and our path below each."""
    found = []
    for line in _read(PROC / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            found.append((CGROUPS / "memory", path))
        elif number == "0" and not controllers:
            found.append((CGROUPS, path))
    return found


def _limit_of(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        text = _read(folder / name).strip()
        if text.isdecimal() and int(text) < UNLIMITED:
            return int(text)
    return None


def _machine_memory() -> int:
    size = _entry(PROC / "meminfo", "MemTotal:")
    return size * KIB if size is not None else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _entry(path: Path, name: str) -> int | None:
    """The number that stands behind a name at the beginning of a line."""
    for line in _read(path).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name and words[1].isdecimal():
            return int(words[1])
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
