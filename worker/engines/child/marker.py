"""The variable by which a worker knows the processes that it, or a dead worker before it, has started."""

from __future__ import annotations

import os
from dataclasses import dataclass

from worker.engines.child import processes
from worker.engines.child.processes import Seen, Table

VARIABLE = "SD_WORKER_SERVER"


@dataclass(frozen=True, slots=True)
class Marker:
    """Who started a server, and where it was to listen.

    The worker is told by the namespace that its number counts in, the number, and when it started.
    """

    address: str
    space: str
    worker: int
    started: int

    def __str__(self) -> str:
        return f"{self.address} {self.space} {self.worker} {self.started}"

    @property
    def is_orphaned(self) -> bool:
        """Whether its worker is gone for certain."""
        if self.space != _space():
            return False
        now = processes.look_at(self.worker)
        return now is None or now.started != self.started or not now.alive


def own_marker(address: str) -> Marker:
    """That of this process."""
    now = processes.look_at(os.getpid())
    return Marker(address, _space(), os.getpid(), now.started if now is not None else 0)


def parse_marker(text: str | None) -> Marker | None:
    """None for what no worker wrote."""
    match (text or "").split():
        case [address, space, worker, started] if worker.isdecimal() and started.isdecimal():
            return Marker(address, space, int(worker), int(started))
        case _:
            return None


def marker_of(pid: int) -> Marker | None:
    return parse_marker(processes.variable_of(pid, VARIABLE))


def marked(mine: Marker, among: Table) -> set[int]:
    """The processes that were started by us for this address."""
    return {pid for pid in _others(among) if marker_of(pid) == mine}


def leftovers(mine: Marker, among: Table) -> list[Seen]:
    """What is left of servers that we or a worker which is gone have started, with all that came from them."""
    others = set(_others(among))
    found = {pid for pid in others if (marker := marker_of(pid)) and (marker == mine or marker.is_orphaned)}
    return [among[pid] for pid in processes.with_descendants(found, among) & others]


def _others(among: Table) -> list[int]:
    """All that runs but ourselves and those that we come from."""
    line = set()
    pid = os.getpid()
    while pid in among and pid not in line:
        line.add(pid)
        pid = among[pid].parent
    return [one.pid for one in among.values() if one.alive and one.pid not in line]


def _space() -> str:
    try:
        return str((processes.PROC / "self" / "ns" / "pid").readlink())
    except OSError:
        return "none"
