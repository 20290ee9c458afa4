"""The figures of the machine that a record holds: read often, so cheaply. Everything here blocks, briefly."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from worker.engines.child import container
from worker.node import Use

BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Reading:
    """One look; None for what nobody can tell."""

    memory: Use | None = None
    oom_kills: int | None = None
    disk_free: int | None = None


class Machine:
    """The container and the machine under it; which cgroup counts is found once. ``folder`` lies on the disk meant."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._account = container.account()
        self.boot = container.text_of(BOOT).strip()
        self.cgroup = self._account.identity

    def read(self) -> Reading:
        held = self._account.held()
        return Reading(
            memory=None if held is None else Use(*held),
            oom_kills=self._account.oom_kills(),
            disk_free=_free(self._folder),
        )


def _free(folder: Path) -> int | None:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize
