"""Whether the files on disk are still what they were: header and hash of each."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from worker.errors import ModelCorrupt
from worker.models.base import Entry
from worker.models.hashing import sha256_of
from worker.models.header import check_model_file


class State(StrEnum):
    """``HASHED``: good as far as its header tells, and its hash, which nobody knew, is known now."""

    GOOD = "good"
    HASHED = "hashed"
    CORRUPT = "corrupt"
    UNREADABLE = "unreadable"


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
