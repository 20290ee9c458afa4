"""What the index says and what the folders hold, made one. No I/O: who calls looks at the files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from worker.mentions import Place
from worker.models.baked import Baked
from worker.models.base import Entry
from worker.models.folders import File, Scan

Check = Callable[[Place, File], str]
"""Why a file cannot be served, in words; empty when it can."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What came, went, or became other bytes without our doing."""

    added: tuple[Place, ...] = ()
    gone: tuple[Place, ...] = ()
    changed: tuple[Place, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.gone or self.changed)


@dataclass(frozen=True, slots=True)
class Reconciled:
    """``entries`` in the order of their use, ``unusable`` files with the reason, and the bytes that these take."""

    entries: tuple[Entry, ...]
    changes: Changes
    unusable: Mapping[Place, str]
    unusable_bytes: int


def reconciled(
    known: Iterable[Entry],
    scan: Scan,
    *,
    check: Check,
    baked: Baked,
    first: bool = False,
    landings: Mapping[Place, Entry] | None = None,
) -> Reconciled:
    """The entries that hold now.

    A file that nobody recorded was downloaded by the server itself, or by hand: it counts, and its hash is unknown.
    Not so at the ``first`` run, when it came with the image, and not so what ``landings`` says that we were about to
    give its name: it is the file of that size and time. A link's file lies elsewhere and counts as little as a baked
    one. What changed its size or time is another file: it loses hash and URLs, and, when it was baked, that it was,
    since its bytes are in the writable layer now. A file that is missing is forgotten, unless a folder could not be
    read. Only new and changed files are checked; one that fails is not served.
    """
    found = _Found(scan, check, baked, first, landings or {})
    kept = [entry for entry in map(found.kept, known) if entry is not None]
    last = max((entry.used for entry in kept), default=0)
    new = sorted((place for place in scan.files if place not in found.seen), key=found.recency)
    added = [entry for entry in map(found.added, new) if entry is not None]
    numbered = [dataclasses.replace(entry, used=last + 1 + i) for i, entry in enumerate(added)]
    changes = Changes(tuple(entry.place for entry in added), tuple(found.gone), tuple(found.changed))
    unusable_bytes = sum(scan.files[place].size for place in found.unusable if not scan.files[place].link)
    return Reconciled((*kept, *numbered), changes, found.unusable, unusable_bytes)


class _Found:
    def __init__(self, scan: Scan, check: Check, baked: Baked, first: bool, landings: Mapping[Place, Entry]) -> None:
        self._scan, self._check, self._baked, self._first = scan, check, baked, first
        self._landings = landings
        self.seen: set[Place] = set()
        self.gone: list[Place] = []
        self.changed: list[Place] = []
        self.unusable: dict[Place, str] = {}

    def recency(self, place: Place) -> tuple[bool, int]:
        """The order of new files: what we fetched ourselves came last."""
        file = self._scan.files[place]
        return self._landing(place, file) is not None, file.mtime_ns

    def kept(self, entry: Entry) -> Entry | None:
        """A known entry as it is now; None when it is no more."""
        self.seen.add(entry.place)
        file = self._scan.files.get(entry.place)
        if file is None:
            if not self._scan.complete:
                return entry
            self.gone.append(entry.place)
            return None
        if (file.size, file.mtime_ns) == (entry.size, entry.mtime_ns):
            return self._with_the_image(entry)
        other = self._entry(entry.place, file)
        (self.gone if other is None else self.changed).append(entry.place)
        return None if other is None else dataclasses.replace(other, used=entry.used)

    def added(self, place: Place) -> Entry | None:
        """An unknown file as an entry; None when it cannot be served."""
        file = self._scan.files[place]
        entry = self._entry(place, file)
        return dataclasses.replace(entry, baked=True) if entry is not None and self._first else entry

    def _entry(self, place: Place, file: File) -> Entry | None:
        landing = self._landing(place, file)
        if landing is not None:
            return landing
        why = self._check(place, file)
        if why:
            self.unusable[place] = why
            return None
        shipped = self._baked.of(place, file.size, file.mtime_ns)
        if shipped is not None:
            return dataclasses.replace(shipped, mtime_ns=file.mtime_ns)
        return Entry(place, file.size, used=0, baked=file.link, mtime_ns=file.mtime_ns)

    def _landing(self, place: Place, file: File) -> Entry | None:
        landing = self._landings.get(place)
        same = landing is not None and (landing.size, landing.mtime_ns) == (file.size, file.mtime_ns)
        return landing if same else None

    def _with_the_image(self, entry: Entry) -> Entry:
        """What the image's record knows of a baked file and the index does not."""
        shipped = self._baked.of(entry.place, entry.size, entry.mtime_ns) if entry.baked else None
        if shipped is None or entry.sha256 is not None:
            return entry
        return dataclasses.replace(entry, sha256=shipped.sha256, urls=entry.urls | shipped.urls)
