"""Whether the files on disk are still what they were: header and hash of each."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import structlog

from worker.errors import ModelCorrupt
from worker.mentions import Place
from worker.models.base import Entry
from worker.models.books import Hold
from worker.models.carrier import Carrier
from worker.models.disk import Disk
from worker.models.hashing import sha256_of
from worker.models.header import check_model_file

log = structlog.get_logger()


class State(StrEnum):
    """``HASHED``: good as far as its header tells, and its hash, which nobody knew, is known now."""

    GOOD = "good"
    HASHED = "hashed"
    CORRUPT = "corrupt"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Audited:
    """What a look at one file found; ``detail`` in words where it is bad. ``removed``: it was deleted."""

    place: Place
    state: State
    detail: str = ""
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Examined:
    """What a file itself tells; ``sha256`` of its bytes where they could be read."""

    state: State
    detail: str = ""
    sha256: str | None = None


async def examined(path: Path, entry: Entry) -> Examined:
    """Read the header and all bytes of an entry's file. Changes nothing."""
    try:
        await asyncio.to_thread(check_model_file, path, entry.place.name)
    except ModelCorrupt as error:
        return Examined(State.CORRUPT, error.message)
    except OSError as error:
        return Examined(State.UNREADABLE, error.strerror or "cannot be read")
    digest = await sha256_of(path)
    if digest is None:
        return Examined(State.UNREADABLE, "cannot be read, or changes meanwhile")
    if entry.sha256 is None:
        return Examined(State.HASHED, sha256=digest)
    if digest != entry.sha256:
        return Examined(State.CORRUPT, f"its sha256 is {digest} and not {entry.sha256}", digest)
    return Examined(State.GOOD, sha256=digest)


class Audit:
    def __init__(self, carrier: Carrier, disk: Disk) -> None:
        self._carrier = carrier
        self._disk = disk
        self._books = carrier.books

    async def of(self, place: Place, hold: Hold) -> Audited | None:
        """Look at one file, which stays pinned by the hold; None when it has gone."""
        entry = self._disk.entries.get(place)
        if entry is None or place in self._books.leaving:
            return None
        self._books.pin(hold, place)
        found = await examined(self._disk.folders.path(place), entry)
        if found.state is State.HASHED:
            await self._carrier.learn(place, sha256=found.sha256)
        return Audited(place, found.state, found.detail)

    async def settled(self, found: Audited) -> Audited:
        """Delete a corrupt file, unless a job or the server uses it."""
        if found.state is not State.CORRUPT:
            return found
        log.error("model_corrupt", model=str(found.place), error=found.detail)
        await self._carrier.room.look()
        place = found.place
        if place in self._books.pinned or place in self._books.loaded or place not in self._disk.entries:
            return found
        self._carrier.room.clear([place], ())
        await self._carrier.room.cleared()
        return Audited(place, found.state, found.detail, removed=place not in self._disk.entries)
