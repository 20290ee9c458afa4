"""What the container allows and what the kernel took: memory limits and out-of-memory kills, by cgroup v2 or v1."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
KIB = 1024
USES = (
    ("memory.current", ("inactive_file", "active_file")),
    ("memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)
"""Files that say what a cgroup holds, and the entries of ``memory.stat`` that tell how much of it can be dropped."""

UNLIMITED = 1 << 60
"""cgroup v1 writes some number near 2^63 where there is no limit."""


def container_memory() -> int:
    """Bytes that this container may hold: the least of its cgroup's limits, else the machine's memory."""
    return account().limit


@dataclass(frozen=True, slots=True)
class Account:
    """Where this container's memory is accounted for: found once, read often.

    ``limited`` is the cgroup with the least limit of those around us, ``counting`` the one that counts kills; None
    where there is none. ``limit`` in bytes.
    """

    limit: int
    limited: Path | None = None
    counting: Path | None = None

    @property
    def identity(self) -> str:
        """Tells one cgroup from another, also of the same name; empty where none counts."""
        try:
            found = self.counting.stat() if self.counting is not None else None
        except OSError:
            return ""
        return "" if found is None else f"{found.st_dev}:{found.st_ino}"

    def held(self) -> tuple[int, int] | None:
        """Bytes held that cannot be dropped, and the limit: files that were read count against it, but make way."""
        if self.limited is None:
            available = _entry(PROC / "meminfo", "MemAvailable:")
            return None if available is None else (max(0, self.limit - available * KIB), self.limit)
        for use, droppable in USES:
            text = text_of(self.limited / use).strip()
            if text.isdecimal():
                stat = _entries(self.limited / "memory.stat")
                return max(0, int(text) - sum(stat.get(name, 0) for name in droppable)), self.limit
        return None

    def oom_kills(self) -> int | None:
        """As `oom_kills`."""
        return None if self.counting is None else _kills(self.counting)


def account() -> Account:
    """As it is now; a container does not move."""
    folders = list(_folders())
    limits = [(limit, folder) for folder in folders if (limit := _limit_of(folder)) is not None]
    machine = _machine_memory()
    limit, limited = min(limits, key=lambda one: one[0], default=(machine, None))
    counting = next((folder for folder in folders if _kills(folder) is not None), None)
    return Account(min(limit, machine), limited if limit <= machine else None, counting)


def oom_kills() -> int | None:
    """How many processes of this container the kernel has killed for memory so far; None where nobody can tell."""
    return next((count for folder in _folders() if (count := _kills(folder)) is not None), None)


def _kills(folder: Path) -> int | None:
    counts = (_entry(folder / name, "oom_kill") for name in ("memory.events", "memory.oom_control"))
    return next((count for count in counts if count is not None), None)


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
    for line in text_of(PROC / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if "memory" in controllers.split(","):
            found.append((CGROUPS / "memory", path))
        elif number == "0" and not controllers:
            found.append((CGROUPS, path))
    return found


def _limit_of(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        text = text_of(folder / name).strip()
        if text.isdecimal() and int(text) < UNLIMITED:
            return int(text)
    return None


def _machine_memory() -> int:
    size = _entry(PROC / "meminfo", "MemTotal:")
    return size * KIB if size is not None else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _entry(path: Path, name: str) -> int | None:
    """The number that stands behind a name at the beginning of a line."""
    for line in text_of(path).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == name and words[1].isdecimal():
            return int(words[1])
    return None


def _entries(path: Path) -> dict[str, int]:
    """Names and the numbers behind them, one a line."""
    words = (line.split() for line in text_of(path).splitlines())
    return {found[0]: int(found[1]) for found in words if len(found) > 1 and found[1].isdecimal()}


def text_of(path: Path) -> str:
    """What a file of the kernel says; nothing where it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
