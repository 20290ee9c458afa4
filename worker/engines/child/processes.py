"""The processes of this machine as `/proc` shows them; nothing at all where there is none (macOS).

A process is known by its number and the time of its start, since numbers are used again.
"""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from worker.engines.child.kernel import seeing_as

PROC = Path("/proc")
KIB = 1024
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Seen:
    """One process at the time of the look; ``started`` in ticks since the machine's start."""

    pid: int
    name: str
    state: str
    parent: int
    group: int
    session: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether it still runs: a zombie holds nothing but its number."""
        return self.state not in ("Z", "X", "x")

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


Table = Mapping[int, Seen]


def parse_stat(text: str) -> Seen:
    """A line of `/proc/<pid>/stat`, whose second field may hold blanks and parentheses."""
    number, _, rest = text.partition(" (")
    name, _, tail = rest.rpartition(") ")
    fields = tail.split()
    parent, group, session = map(int, fields[1:4])
    return Seen(int(number), name, fields[0], parent, group, session, int(fields[19]))


def look_at(pid: int) -> Seen | None:
    """One process; None when there is none of that number, or nobody can tell."""
    try:
        return parse_stat((PROC / str(pid) / "stat").read_text(errors="replace"))
    except (OSError, ValueError, IndexError):
        return None


def visible() -> bool:
    """Whether this system shows its processes."""
    return (PROC / "self").exists()


def table() -> dict[int, Seen]:
    """All that can be seen, zombies included; empty where there is no `/proc`."""
    try:
        names = os.listdir(PROC)  # noqa: PTH208 - a Path for each would cost more than the look
    except OSError:
        return {}
    found = (look_at(int(name)) for name in names if name.isdecimal())
    return {one.pid: one for one in found if one is not None}


def with_descendants(roots: Iterable[int], among: Table) -> set[int]:
    """The roots that exist and all that comes from them."""
    children: dict[int, list[int]] = defaultdict(list)
    for one in among.values():
        children[one.parent].append(one.pid)
    found: set[int] = set()
    todo = [pid for pid in roots if pid in among]
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo.extend(children[pid])
    return found


def is_same(seen: Seen) -> bool:
    """Whether the process still runs, and its number was not given to another."""
    now = look_at(seen.pid)
    return now is not None and now.started == seen.started and now.alive


def kill(seen: Seen) -> None:
    """SIGKILL, if it is still the same process."""
    if is_same(seen):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(seen.pid, signal.SIGKILL)


def variable_of(pid: int, name: str) -> str | None:
    """A variable of the environment that the process was started with; None when it has none or it is hidden."""
    try:
        data = as_owner(pid, (PROC / str(pid) / "environ").read_bytes)
    except OSError:
        return None
    prefix = name.encode() + b"="
    for entry in data.split(b"\0"):
        if entry.startswith(prefix):
            return entry.removeprefix(prefix).decode(errors="replace")
    return None


def as_owner(pid: int, read: Callable[[], T]) -> T:
    """Read something of a process, as the user that it runs as where we ourselves may not. Raises `OSError`."""
    try:
        return read()
    except PermissionError:
        owner = (PROC / str(pid)).stat()
        with seeing_as(owner.st_uid, owner.st_gid):
            return read()


def memory_of(pids: Iterable[int]) -> int | None:
    """Anonymous and shared bytes that the processes hold, memory that several share counted for each.

    None when nothing could be read. Mapped files are left out: the kernel drops them when it needs room.
    """
    held = [bytes_held(pid) for pid in pids]
    known = [size for size in held if size is not None]
    return sum(known) if known else None


def bytes_held(pid: int) -> int | None:
    """The same of one process."""
    try:
        return parse_status((PROC / str(pid) / "status").read_text(errors="replace"))
    except OSError:
        return None


def parse_status(text: str) -> int | None:
    """`RssAnon` and `RssShmem` of `/proc/<pid>/status`; None when it has no memory, as a zombie."""
    sizes = [int(line.split()[1]) * KIB for line in text.splitlines() if line.startswith(("RssAnon:", "RssShmem:"))]
    return sum(sizes) if sizes else None


def own_session() -> int:
    return os.getsid(0)
