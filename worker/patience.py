"""Bearing with the operator's store: each use counts for or against it, and finished images wait until it is back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from worker.dependencies import Dependencies, Dependency
from worker.errors import AuthFailed, DiskFull, Owner, UploadFailed
from worker.storage.base import Storage, Stores

log = structlog.get_logger()
T = TypeVar("T")

MOST_S = 3600.0
"""How long finished images wait under their lease."""

PAUSE_FIRST_S, PAUSE_MOST_S = 1.0, 30.0


class Patience:
    """Only the operator's own store counts; what a job named itself never pauses anything."""

    def __init__(self, stores: Stores, dependencies: Dependencies) -> None:
        self._stores = stores
        self._dependencies = dependencies

    async def once(self, storage: Storage, call: Callable[[], Awaitable[T]]) -> T:
        """One use of the store."""
        counts = storage is self._stores.default
        try:
            result = await call()
        except (UploadFailed, AuthFailed, DiskFull) as error:
            if counts:
                self._dependencies.failed(Dependency.STORAGE, error)
            raise
        if counts:
            self._dependencies.succeeded(Dependency.STORAGE)
        return result

    async def until_taken(self, storage: Storage, call: Callable[[], Awaitable[T]]) -> T:
        """Use the store until it takes it; after `MOST_S`, or where the job named the place, its error comes out."""
        give_up_at = asyncio.get_running_loop().time() + MOST_S
        pause_s = PAUSE_FIRST_S
        while True:
            try:
                return await self.once(storage, call)
            except (UploadFailed, AuthFailed) as error:
                if error.owner is Owner.JOB or asyncio.get_running_loop().time() >= give_up_at:
                    raise
                log.warning("upload_waits", store=storage.name, code=error.code, error=error.message)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_MOST_S)
            try:
                async with asyncio.timeout_at(give_up_at):
                    await self._dependencies.resumed(Dependency.STORAGE)
            except TimeoutError:
                log.error("upload_given_up", store=storage.name)
