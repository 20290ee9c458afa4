"""What is done to the model files and their index, step by step in the order that a crash allows.

Everything here blocks and belongs in the one thread of `worker.models.disk.Disk`, which keeps the entries.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from worker import log
from worker.errors import ConfigError, DiskFull, DownloadFailed, InvalidJob, ModelCorrupt
from worker.mentions import Place
from worker.models.baked import NAME as BAKED
from worker.models.baked import Baked, baked_of, read_baked, write_baked
from worker.models.base import Entry
from worker.models.folders import File, Folders, Scan, partial_of
from worker.models.header import check_model_file
from worker.models.index import Found, Index, Records, Transfer, peek
from worker.models.measure import measured
from worker.models.reconcile import Changes, Reconciled, reconciled

STRAYS = "models"
"""Under this name stands what lies among the models and is none."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Looked:
    """The folders as they are: ``others`` are the bytes of everything that is no model and came after the image."""

    entries: tuple[Entry, ...]
    changes: Changes
    unusable: Mapping[Place, str]
    others: int
    transfers: tuple[Transfer, ...] = ()


class Acts:
    """``written`` are the folders that are measured beside those of the models."""

    def __init__(self, folders: Folders, index: Index, written: Sequence[Path]) -> None:
        self.folders = folders
        self.index = index
        self._written = tuple(written)
        self._baked = Baked()
        self._baked_written = False

    def open(self) -> Looked:
        """Bring index and folders together, and delete the partial files that no record explains."""
        found, records = self.index.open()
        self._baked = read_baked(self.folders.ours)
        self._baked_written = self._baked.seen
        scan = self.folders.scan()
        first = not self._baked.seen and found is not Found.DAMAGED and not records.entries
        landings = {one.place: one.landing for one in records.transfers if one.landing is not None}
        now = self._reconciled(records.entries, scan, first, landings)
        taken = self._taken(scan, now)
        if not self._baked.seen:
            self._see(now.entries, taken)
        transfers = self._sweep(records.transfers, scan)
        self._record(records.entries, now)
        return Looked(now.entries, now.changes, now.unusable, self._grown(taken), transfers)

    def refresh(self, known: Sequence[Entry]) -> Looked:
        """Look again: ``known`` are the entries as they were. Our own records are restored where they were deleted."""
        self.index.look()
        if self._baked_written and not (self.folders.ours / BAKED).exists():
            self._remember_baked()
        scan = self.folders.scan()
        now = self._reconciled(known, scan)
        self._record(known, now)
        return Looked(now.entries, now.changes, now.unusable, self._grown(self._taken(scan, now)))

    def begin(self, transfer: Transfer, before: Transfer | None) -> Path:
        """Record a transfer, then make its file; that of another one for this place goes."""
        partial = self.folders.partial(transfer.place, transfer.key)
        with translating(partial):
            if before is not None and before.key != transfer.key:
                self._unlink_partial(before)
            self.index.begin(transfer)
            partial.parent.mkdir(parents=True, exist_ok=True)
            partial.touch()
        return partial

    def size_of(self, transfer: Transfer) -> tuple[Path, int]:
        """Its partial file, and how many bytes that has."""
        partial = self.folders.partial(transfer.place, transfer.key)
        try:
            return partial, partial.stat().st_size
        except OSError:
            return partial, 0

    def drop(self, transfer: Transfer) -> int:
        """Delete what a transfer left, then forget it; the bytes that this freed."""
        with translating(self.folders.path(transfer.place)):
            freed = self._unlink_partial(transfer)
        self.index.ended([transfer.place])
        return freed

    def land(self, partial: Path, entry: Entry, transfer: Transfer) -> Entry:
        """Sync, note what is about to be, rename, sync the folder, record."""
        path = self.folders.path(entry.place)
        with translating(path):
            size, mtime_ns = _synced(partial)
            if size != entry.size:
                raise ModelCorrupt(f"{entry.place.name} has {size} bytes and not {entry.size}")
            landed = dataclasses.replace(entry, mtime_ns=mtime_ns, baked=False)
            self.index.begin(dataclasses.replace(transfer, landing=landed))
            partial.replace(path)
            _sync_folder(path.parent)
        self.index.landed(landed)
        _unlink_beside(partial)
        return landed

    def delete(self, place: Place) -> None:
        """Delete, then forget; the folders below that of the kind go when nothing is left in them."""
        path = self.folders.path(place)
        with translating(path):
            path.unlink(missing_ok=True)
        self.index.forget([place])
        self.folders.tidy(path)

    def remember(self, used: Mapping[Place, int], everything: Records | None) -> None:
        """Record uses, or all anew."""
        if everything is not None:
            self.index.rewrite(everything)
        elif used:
            self.index.use(used)

    def bake(self, entries: Sequence[Entry]) -> None:
        """Write the image's record and remove the index, so that the next run is the first."""
        with translating(self.folders.ours):
            write_baked(self.folders.ours, baked_of(entries, seen=False))
            self.index.remove()

    def _reconciled(
        self,
        known: Sequence[Entry],
        scan: Scan,
        first: bool = False,
        landings: Mapping[Place, Entry] | None = None,
    ) -> Reconciled:
        now = reconciled(known, scan, check=why_unusable, baked=self._baked, first=first, landings=landings)
        for place, why in now.unusable.items():
            _log.warning("model_unusable", kind=place.kind, name=place.name, reason=why)
        return now

    def _taken(self, scan: Scan, now: Reconciled) -> dict[str, int]:
        """Bytes of everything that is no model and no partial file, by the folder that it was found in."""
        beside = measured(self._written, self.folders.root, self.folders.roots())
        return {STRAYS: scan.strays + now.unusable_bytes, **beside}

    def _grown(self, taken: Mapping[str, int]) -> int:
        return sum(max(0, size - self._baked.others.get(name, 0)) for name, size in taken.items())

    def _see(self, entries: Sequence[Entry], taken: Mapping[str, int]) -> None:
        """The container's first run: what is there now came with the image."""
        self._baked = baked_of([e for e in entries if e.baked], seen=True, others=taken)
        self._remember_baked()

    def _remember_baked(self) -> None:
        """Without this record the next run would take all that is there for part of the image."""
        try:
            write_baked(self.folders.ours, self._baked)
            self._baked_written = True
        except OSError as error:
            _log.warning("models_baked_not_written", path=str(self.folders.ours / BAKED), error=str(error))

    def _sweep(self, transfers: Sequence[Transfer], scan: Scan) -> tuple[Transfer, ...]:
        """The transfers whose files are there; records without files, and files without a record, go."""
        there = {self._partial_of(transfer): transfer for transfer in transfers}
        kept = {path: transfer for path, transfer in there.items() if path is not None and path in scan.leftovers}
        self.index.ended([one.place for one in transfers if one not in kept.values()])
        for path in scan.leftovers:
            if partial_of(path) not in kept:
                with contextlib.suppress(OSError):
                    path.unlink()
        return tuple(kept.values())

    def _partial_of(self, transfer: Transfer) -> Path | None:
        try:
            return self.folders.partial(transfer.place, transfer.key)
        except InvalidJob:
            return None

    def _record(self, known: Sequence[Entry], now: Reconciled) -> None:
        before = {entry.place: entry for entry in known}
        after = {entry.place for entry in now.entries}
        self.index.put(entry for entry in now.entries if before.get(entry.place) != entry)
        self.index.forget(place for place in before if place not in after)

    def _unlink_partial(self, transfer: Transfer) -> int:
        partial = self.folders.partial(transfer.place, transfer.key)
        freed = 0
        with contextlib.suppress(FileNotFoundError):
            freed = partial.stat().st_size
            partial.unlink()
        _unlink_beside(partial)
        self.folders.tidy(partial)
        return freed


def look(folders: Folders) -> tuple[Entry, ...]:
    """What a worker that has these folders would serve, the least recently used first; changes nothing. Blocks."""
    return survey(folders).entries


def survey(folders: Folders) -> Reconciled:
    """The same with what is no model although it has the name of one. Changes nothing, and blocks."""
    records, baked = peek(folders.ours), read_baked(folders.ours)
    first = not baked.seen and not records.entries
    return reconciled(records.entries, folders.scan(), check=why_unusable, baked=baked, first=first)


def leftovers(folders: Folders) -> dict[Place, int]:
    """The bytes of transfers that were begun and have not landed, as recorded. Changes nothing, and blocks."""
    found = {}
    for transfer in peek(folders.ours).transfers:
        with contextlib.suppress(OSError, InvalidJob):
            found[transfer.place] = folders.partial(transfer.place, transfer.key).stat().st_size
    return found


def why_unusable(place: Place, file: File) -> str:
    """Why a file cannot be served, by its header; empty when it can. Blocks."""
    try:
        check_model_file(file.path, place.name)
    except ModelCorrupt as error:
        return error.message
    except OSError as error:
        return f"{place.name} cannot be read: {error.strerror}"
    return ""


@contextmanager
def translating(path: Path) -> Iterator[None]:
    """The file system's errors as `DiskFull`, `ConfigError` where writing is forbidden, else `DownloadFailed`."""
    try:
        yield
    except OSError as error:
        said = f"{path}: {error.strerror or error}"
        if error.errno in _FULL:
            raise DiskFull(said) from error
        if error.errno in _FORBIDDEN:
            raise ConfigError(said) from error
        raise DownloadFailed(said) from error


def _synced(path: Path) -> tuple[int, int]:
    """Size and time of a file that is on disk when this returns."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unlink_beside(partial: Path) -> None:
    """What a transfer keeps beside its file, under names that begin with that one's."""
    with contextlib.suppress(OSError), os.scandir(partial.parent) as entries:
        for entry in entries:
            if entry.name.startswith(f"{partial.name}."):
                Path(entry.path).unlink(missing_ok=True)
