"""Duties of the first process of a container: bury the orphans, pass signals on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import structlog

from worker.engines.base import Process
from worker.engines.child import kernel, processes
from worker.engines.child.child import Child

log = structlog.get_logger(__name__)

PASSED_ON = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
LOOK_EVERY_S = 30.0
UNCLAIMED_S = 2.0
"""A zombie that nobody has reaped for so long is nobody's: asyncio takes the exit code of its own at once."""


def prepare_as_init() -> bool:
    """Have the server's orphans come to us, whatever our number; whether they do. Once, before it is started."""
    return kernel.become_subreaper() or kernel.adopts()


class Reaper:
    """A service: reaps the zombies that are our children but of no waiter here, and passes signals to the server.

    It looks first and reaps one by one, by number: `waitpid(-1)` would take exit codes that asyncio waits for.
    """

    def __init__(self, process: Process, *, unclaimed_s: float = UNCLAIMED_S) -> None:
        self._child = process if isinstance(process, Child) else None
        self._unclaimed_s = unclaimed_s
        self._since: dict[tuple[int, int], float] = {}
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        with self._signals():
            while True:
                self._woken.clear()
                self.look()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._unclaimed_s if self._since else LOOK_EVERY_S):
                        await self._woken.wait()

    def look(self) -> None:
        """Reap what has been a zombie for long enough; note what has become one."""
        now = asyncio.get_running_loop().time()
        zombies = {_identity(one): one for one in self._zombies()}
        self._since = {key: self._since.get(key, now) for key in zombies}
        for key, since in list(self._since.items()):
            if now - since >= self._unclaimed_s:
                del self._since[key]
                _reap(zombies[key])

    def _zombies(self) -> list[processes.Seen]:
        if not _has_zombie():
            return []
        me, own = os.getpid(), self._child.pid if self._child is not None else None
        return [one for one in processes.table().values() if one.parent == me and not one.alive and one.pid != own]

    def _pass_on(self, number: signal.Signals) -> None:
        if self._child is not None:
            log.info("signal_passed_on", signal=number.name)
            self._child.send_signal(number)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Hear of signals where the loop can tell of them; else only the slow look is left."""
        loop = asyncio.get_running_loop()
        heard: list[signal.Signals] = []
        try:
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(signal.SIGCHLD, self._woken.set)
                heard.append(signal.SIGCHLD)
                for number in PASSED_ON if self._child is not None else ():
                    loop.add_signal_handler(number, self._pass_on, number)
                    heard.append(number)
            yield
        finally:
            for number in heard:
                loop.remove_signal_handler(number)


def _has_zombie() -> bool:
    """Whether any child of ours waits to be reaped; it is only looked at."""
    if not hasattr(os, "waitid"):
        return False
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _reap(zombie: processes.Seen) -> None:
    with suppress(ChildProcessError):
        os.waitpid(zombie.pid, os.WNOHANG)
        log.debug("orphan_reaped", pid=zombie.pid, name=zombie.name)


def _identity(seen: processes.Seen) -> tuple[int, int]:
    return seen.pid, seen.started
