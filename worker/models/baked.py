"""The record of what came with the image: written while an image is built, and at the container's first run.

What is there when the first run begins lies in the image's layers: it takes nothing of the writable disk, and
deleting it gives nothing back. Everything that comes later counts.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker import log
from worker.mentions import Place
from worker.models.base import Entry

NAME = "baked.json"
VERSION = 1

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Baked:
    """``seen`` once a container has begun to run: until then more may be baked, and files bear other times.

    ``others`` are the bytes of all that was there beside the models, by the folder that was measured.
    """

    seen: bool = False
    models: Mapping[Place, Entry] = dataclasses.field(default_factory=dict)
    others: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def of(self, place: Place, size: int, mtime_ns: int) -> Entry | None:
        """The model that the image had here, if these are still its bytes."""
        entry = self.models.get(place)
        same = entry is not None and entry.size == size and (not self.seen or entry.mtime_ns == mtime_ns)
        return entry if same else None


def read_baked(folder: Path) -> Baked:
    """What is recorded; nothing where there is no record, or none that can be read. Blocks."""
    path = folder / NAME
    try:
        return _parsed(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return Baked()
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("models_baked_unreadable", path=str(path), error=str(error))
        return Baked()


def write_baked(folder: Path, baked: Baked) -> None:
    """Whole or not at all, also after a crash. Blocks; raises `OSError`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path, new = folder / NAME, folder / f"{NAME}.new"
    document = {
        "version": VERSION,
        "seen": baked.seen,
        "models": [_written(entry) for entry in baked.models.values()],
        "others": dict(baked.others),
    }
    with new.open("w") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def baked_of(entries: Iterable[Entry], *, seen: bool, others: Mapping[str, int] | None = None) -> Baked:
    return Baked(seen, {entry.place: entry for entry in entries}, others or {})


def _written(entry: Entry) -> dict[str, Any]:
    return {
        "kind": entry.place.kind,
        "name": entry.place.name,
        "size": entry.size,
        "mtime_ns": entry.mtime_ns,
        "sha256": entry.sha256,
        "urls": sorted(entry.urls),
    }


def _parsed(document: Any) -> Baked:
    if document["version"] != VERSION:
        raise ValueError(f"has version {document['version']}")
    entries = [
        Entry(
            Place(str(one["kind"]), str(one["name"])),
            int(one["size"]),
            used=0,
            sha256=one["sha256"],
            urls=frozenset(one["urls"]),
            baked=True,
            mtime_ns=int(one["mtime_ns"]),
        )
        for one in document["models"]
    ]
    others = {str(folder): int(size) for folder, size in document["others"].items()}
    return baked_of(entries, seen=document["seen"] is True, others=others)
