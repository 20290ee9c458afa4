"""What the operator configured and may fail: two failures in a row pause the intake, one success resumes it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from enum import StrEnum
from typing import Any

import structlog

from worker.errors import AuthFailed, DependencyFailed, DiskFull, Owner, WorkerError

log = structlog.get_logger()


class Dependency(StrEnum):
    STORAGE = "storage"
    QUEUE = "queue"
    DISK = "disk"


class Dependencies:
    """Counts failures and remembers what is paused, by the code of the failure that paused it."""

    IN_A_ROW = 2

    def __init__(self) -> None:
        self._failures: dict[Dependency, int] = {}
        self._paused: dict[Dependency, str] = {}
        self._changed = asyncio.Event()

    @property
    def paused(self) -> dict[Dependency, str]:
        return dict(self._paused)

    def failed(self, dependency: Dependency, error: WorkerError) -> None:
        """Count a failure; what a job itself named never counts, refused credentials and a full disk pause at once."""
        if isinstance(error, DependencyFailed) and error.owner is Owner.JOB:
            return
        self._failures[dependency] = self._failures.get(dependency, 0) + 1
        at_once = isinstance(error, AuthFailed | DiskFull)
        if dependency not in self._paused and (at_once or self._failures[dependency] >= self.IN_A_ROW):
            log.error("dependency_paused", dependency=str(dependency), code=error.code, error=error.message)
            self._paused[dependency] = error.code
            self._stir()

    def succeeded(self, dependency: Dependency) -> None:
        self._failures.pop(dependency, None)
        if self._paused.pop(dependency, None) is not None:
            log.info("dependency_resumed", dependency=str(dependency))
            self._stir()

    async def resumed(self, dependency: Dependency) -> None:
        """Wait until the dependency is not paused."""
        while dependency in self._paused:
            await self.changed()

    async def stopped(self, dependency: Dependency) -> None:
        """Wait until the dependency is paused."""
        while dependency not in self._paused:
            await self.changed()

    def changed(self) -> Coroutine[Any, Any, bool]:
        """Until a dependency is paused or resumed, from this call on."""
        return self._changed.wait()

    def _stir(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
