"""A server that something else started: watched, but neither started nor ended by us."""

from __future__ import annotations

import asyncio

from worker.engines.base import NoLog, ServerLog
from worker.engines.child import ports, processes
from worker.engines.child.processes import Seen


class Foreign:
    """The Protocol `Process` for it. Where it listens on this machine, its memory can be told."""

    def __init__(self, url: str) -> None:
        self._place = ports.place_of(url)
        self._seen: Seen | None = None
        self._log = NoLog()

    @property
    def owned(self) -> bool:
        return False

    @property
    def end(self) -> str | None:
        return None

    @property
    def log(self) -> ServerLog:
        return self._log

    def check(self) -> str:
        return "started by something else"

    async def start(self) -> None:
        """Not ours to start."""

    async def stop(self) -> None:
        """Not ours to stop."""

    async def ended(self) -> str:
        """For ever: its end is seen by what no longer answers."""
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return await never

    def stop_at_once(self) -> None:
        """Not ours to kill."""

    def memory(self) -> int | None:
        if self._seen is None or not processes.is_same(self._seen):
            self._seen = self._found()
        if self._seen is None:
            return None
        return processes.memory_of(processes.with_descendants({self._seen.pid}, processes.table()))

    def stranger(self) -> str | None:
        return None

    def _found(self) -> Seen | None:
        """Who listens on its port; None where that is another machine, or hidden."""
        if not self._place.local:
            return None
        inodes = {one.inode for one in ports.listeners() or [] if self._place.reached_by(one)}
        return ports.holder_of(inodes, processes.table()) if inodes else None
