"""The folders of models as commands use them: by themselves, or through the worker that has them.

One worker at a time has a folder. A command takes its place while none runs; else it asks the worker over HTTP, which
needs the key. Looking needs neither.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from worker.cli.running import running
from worker.clock import CorrectedClock, SystemClock
from worker.errors import ConfigError, WorkerError
from worker.mentions import Place
from worker.metrics import Metrics
from worker.models.base import Entry, InFlight, Priority, Wanted
from worker.models.cache import Cache
from worker.models.disk import Disk
from worker.models.folders import Folders, find_folders
from worker.models.lock import FolderInUse
from worker.models.none import NoCache
from worker.models.open import open_cache
from worker.settings.groups import Settings
from worker.urls import Guard

UNLIMITED = 1 << 60
"""Bytes: an image may hold more than the writable disk of a node."""


NONE = "there is no folder of models: set WORKER_MODELS_DIR, or WORKER_ENGINE for the usual one"


class FolderTaken(WorkerError):
    """A worker has the folder of models."""


class Shelf(Protocol):
    async def fetch(self, wanted: Wanted) -> Entry:
        """Raises as `worker.models.base.Models.fetch`."""
        ...

    async def transfers(self) -> tuple[InFlight, ...]:
        """What is on its way for somebody who waits."""
        ...

    async def holds(self, place: Place) -> bool: ...

    async def remove(self, place: Place) -> None:
        """Raises `ModelNotFound` when there is none, `ModelInUse` while it is used."""
        ...


class Nobody:
    """No image server: nothing is loaded, and there is nobody to let go of anything."""

    async def loaded(self) -> frozenset[Place]:
        return frozenset()

    async def unload(self, places: Collection[Place]) -> None:
        """Nothing to unload."""


@dataclass(frozen=True, slots=True)
class Own:
    """The folders themselves."""

    cache: Cache

    async def fetch(self, wanted: Wanted) -> Entry:
        return await self.cache.fetch(await self.cache.typed(wanted), Priority.START)

    async def transfers(self) -> tuple[InFlight, ...]:
        return tuple(one for one in self.cache.transfers() if one.priority is not Priority.BACKGROUND)

    async def holds(self, place: Place) -> bool:
        return any(entry.place == place for entry in self.cache.entries())

    async def remove(self, place: Place) -> None:
        await self.cache.remove(place)


def folders_of(settings: Settings) -> Folders:
    """The folders of models. Raises `ConfigError` where there are none."""
    folders = find_folders(settings.engine.kind, settings.models.dir, settings.models.folders)
    if folders is None:
        raise ConfigError(NONE)
    return folders


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Shelf]:
    """The folders, or the worker that has them. Raises `FolderTaken` when that worker cannot be asked."""
    folders = folders_of(settings)
    worker = await running(settings, folders)
    if worker is not None:
        async with worker:
            yield worker
        return
    async with own(settings) as shelf:
        yield shelf


@asynccontextmanager
async def own(settings: Settings) -> AsyncIterator[Own]:
    """The folders themselves. Raises `FolderTaken` while a worker has them, `ConfigError` where there are none."""
    guard = Guard.from_setting(settings.node.urls_allow_private)
    clock = CorrectedClock(SystemClock())
    try:
        cache = await open_cache(settings, Nobody(), Metrics(), guard=guard, clock=clock, rng=random.Random())
    except FolderInUse:
        raise FolderTaken(_how(settings)) from None
    if isinstance(cache, NoCache):
        raise ConfigError(NONE)
    try:
        yield Own(cache)
    finally:
        await cache.aclose()


def _how(settings: Settings) -> str:
    """What to do when a worker has the folder and was not asked."""
    if settings.http.api_key is None:
        return "a worker has the folder: stop it, or give it and this command the same WORKER_API_KEY"
    return (
        "a worker or another command has the folder, and none answers for it with this WORKER_API_KEY on port "
        f"{settings.http.port}: stop it, or set WORKER_API_KEY and WORKER_HTTP_PORT as it has them"
    )


def unlimited(settings: Settings) -> Settings:
    """The settings without a cap of models: for an image, which counts against none."""
    models = settings.models.model_copy(update={"max_size": UNLIMITED})
    return settings.model_copy(
        update={"models": models, "node": settings.node.model_copy(update={"disk_size": UNLIMITED})}
    )


async def bake(settings: Settings) -> int:
    """Make all that lies in the folders part of the image that is being built; how many models that are.

    Raises `FolderTaken`, and as `Disk.bake`.
    """
    folders = await asyncio.to_thread(folders_of, settings)
    try:
        disk = await Disk.open(folders)
    except FolderInUse:
        raise FolderTaken(_how(settings)) from None
    try:
        return await disk.bake()
    finally:
        await disk.aclose()
