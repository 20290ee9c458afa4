"""The model files on this machine: what there is in the order of its use, and how a file comes and goes.

The folders are the truth and the index remembers; both are brought together when the disk is opened, and again when
the server may have written something itself. Whatever is done to files is done by one thread, in order, and is
carried to its end also when who asked for it is cancelled.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from worker import log
from worker.errors import InternalError
from worker.mentions import Place
from worker.models.acts import Acts, Looked, translating
from worker.models.base import Entry, Wanted
from worker.models.folders import Folders
from worker.models.index import Index, Records, Transfer
from worker.models.lock import FolderLock
from worker.models.measure import cap_of, free_bytes
from worker.models.reconcile import Changes
from worker.tasks import to_the_end

T = TypeVar("T")

FLUSH = timedelta(seconds=2)
"""Uses of this long may be forgotten when the process is killed."""

FRESH = timedelta(seconds=30)
"""How old a look at the folders may be; one that took long is kept twenty times as long as it took."""

_PATIENCE = 20

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Left:
    """A transfer that was begun and has not landed: ``path`` is its partial file, of ``size`` bytes by now."""

    place: Place
    key: str
    wanted: Wanted
    path: Path
    size: int


class Disk:
    """Made by `open`. Files are named by `Place`, under the kind that `Folders.canonical` gives.

    ``entries`` holds every model that can be served, the least recently used first; read it only. ``counted`` are the
    bytes of those that count. ``unusable`` are files that are no models although they have the name of one.
    """

    def __init__(self, acts: Acts, lock: FolderLock, free: Callable[[Path], int]) -> None:
        self.folders = acts.folders
        self.entries: OrderedDict[Place, Entry] = OrderedDict()
        self.counted = 0
        self.unusable: Mapping[Place, str] = {}
        self.others = 0
        """Bytes of everything else that was written on the disk since the container's first run, as last measured."""
        self._acts, self._lock, self._free = acts, lock, free
        self._transfers: dict[Place, Transfer] = {}
        self._last_used = 0
        self._dirty: dict[Place, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="models-disk")
        self._turn = asyncio.Lock()
        self._looking = asyncio.Lock()
        self._looked_at = 0.0
        self._took = 0.0
        self._closed = False

    @classmethod
    async def open(
        cls, folders: Folders, *, also: Sequence[Path] = (), free: Callable[[Path], int] = free_bytes
    ) -> Disk:
        """Bring index and folders together. ``also`` are folders that others of us write to, as that of the images.

        Partial files that no record explains are deleted. Raises `ConfigError` when another worker has the folder.
        """
        index = Index(folders.ours)
        disk = cls(Acts(folders, index, (*folders.written(), *also)), FolderLock(folders.ours), free)
        opened = False
        try:
            await to_the_end(disk._open())
            opened = True
        finally:
            if not opened:
                await disk.aclose()
        return disk

    def free_bytes(self) -> int:
        """Bytes that can still be written where models go. Raises `DownloadFailed` when nobody can tell."""
        with translating(self.folders.root):
            return self._free(self.folders.root)

    def cap(self, max_size: int, disk_size: int) -> int:
        """Bytes that models may take now, by what was last measured."""
        return cap_of(max_size, disk_size, self.others)

    def touch(self, place: Place) -> None:
        """Note a use. Takes no time, and reaches the disk within `FLUSH`."""
        entry = self.entries.get(place)
        if entry is None:
            return
        self._last_used += 1
        self.entries[place] = dataclasses.replace(entry, used=self._last_used)
        self.entries.move_to_end(place)
        self._dirty[place] = self._last_used
        self._flush_later()

    async def begin(self, place: Place, key: str, wanted: Wanted) -> Path:
        """The partial file for a transfer, recorded so that it survives a restart; what lies there can be resumed.

        What an earlier transfer with another key left for this place is deleted. The URL of ``wanted`` should be
        canonical: it is written down. Raises `InvalidJob` for a place that cannot be, `DiskFull`, `ConfigError` when
        the folder must not be written, `DownloadFailed` for other trouble with it.
        """
        return await self._do(self._begin(place, key, wanted))

    async def left(self) -> tuple[Left, ...]:
        """Every transfer that was begun and has not landed."""
        return await self._do(self._left())

    async def drop(self, place: Place) -> int:
        """Delete what was left of a transfer and forget it; the bytes that this freed. Raises as `begin`."""
        return await self._do(self._drop(self.folders.canonical(place)))

    async def land(self, partial: Path, entry: Entry) -> Entry:
        """Give a verified file its name, in place of any file that has it, and record it as just used.

        The file is synced before it has its name, and has its name before it is recorded; killed at any point, the
        next run finds either the partial file or the file with its hash and URLs. Raises as `begin`, and
        `ModelCorrupt` when the file has not the size of ``entry``.
        """
        return await self._do(self._land(partial, entry))

    async def delete(self, place: Place) -> int:
        """Delete the file, then forget it; the counted bytes that this freed. Of a link only the link.

        A file that is gone already is no failure. One that cannot be deleted stays an entry, counted as before:
        raises as `begin`.
        """
        return await self._do(self._delete(self.folders.canonical(place)))

    async def learn(self, place: Place, *, sha256: str | None = None, url: str | None = None) -> Entry | None:
        """Note the hash of a file, or one more canonical URL that gives its bytes; None when there is no such file."""
        return await self._do(self._learn(self.folders.canonical(place), sha256, url))

    async def refresh(self, older_than: timedelta = FRESH) -> Changes:
        """Look at the folders again, and measure the rest, when the last look is older than this."""
        async with self._looking:
            age = asyncio.get_running_loop().time() - self._looked_at
            if older_than and age < max(older_than.total_seconds(), _PATIENCE * self._took):
                return Changes()
            return await self._do(self._refresh())

    async def bake(self) -> int:
        """Make everything that is here part of the image that is being built, and close; how many models that are.

        The next `open` is then a first run. Raises as `begin`.
        """
        baked = await self._do(self._bake())
        await self.aclose()
        return baked

    async def aclose(self) -> None:
        """Write what was not written yet, and let go of the folder. May be called again; nothing else may be."""
        if not self._closed:
            await self._do(self._close())

    async def _do(self, work: Coroutine[Any, Any, T]) -> T:
        """In its turn, and to the end: files and entries never tell different things."""
        return await to_the_end(self._in_turn(work))

    async def _in_turn(self, work: Coroutine[Any, Any, T]) -> T:
        async with self._turn:
            if self._closed:
                work.close()
                raise InternalError("the disk of the models was closed")
            try:
                return await work
            finally:
                if self._acts.index.behind and not self._closed:
                    self._flush_later()

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    async def _open(self) -> None:
        await self._run(self._lock.acquire)
        looked = await self._look(self._acts.open)
        self.entries = OrderedDict((entry.place, entry) for entry in looked.entries)
        self._transfers = {transfer.place: transfer for transfer in looked.transfers}
        self._last_used = max((entry.used for entry in looked.entries), default=0)
        self.counted = sum(entry.size for entry in looked.entries if not entry.baked)
        _log.info(
            "models_opened",
            path=str(self.folders.root),
            models=len(self.entries),
            counted_bytes=self.counted,
            transfers_left=len(self._transfers),
            others_bytes=self.others,
        )

    async def _look(self, look: Callable[..., Looked], *args: Any) -> Looked:
        loop = asyncio.get_running_loop()
        began = loop.time()
        looked = await self._run(look, *args)
        self._looked_at = loop.time()
        self._took = self._looked_at - began
        self.unusable, self.others = looked.unusable, looked.others
        return looked

    async def _refresh(self) -> Changes:
        looked = await self._look(self._acts.refresh, tuple(self.entries.values()))
        now = {entry.place: entry for entry in looked.entries}
        for place in looked.changes.gone:
            self._take_out(place)
        for place in looked.changes.changed:
            self._exchange(dataclasses.replace(now[place], used=self.entries[place].used))
        for place in looked.changes.added:
            self._put_in(now[place])
        if looked.changes:
            gone, changed, added = (len(looked.changes.gone), len(looked.changes.changed), len(looked.changes.added))
            _log.info("models_changed", gone=gone, changed=changed, added=added)
        return looked.changes

    async def _begin(self, place: Place, key: str, wanted: Wanted) -> Path:
        place = self.folders.canonical(place)
        transfer = Transfer(place, key, wanted)
        partial = await self._run(self._acts.begin, transfer, self._transfers.get(place))
        self._transfers[place] = transfer
        return partial

    async def _left(self) -> tuple[Left, ...]:
        left = []
        for transfer in self._transfers.values():
            path, size = await self._run(self._acts.size_of, transfer)
            left.append(Left(transfer.place, transfer.key, transfer.wanted, path, size))
        return tuple(left)

    async def _drop(self, place: Place) -> int:
        transfer = self._transfers.get(place)
        if transfer is None:
            return 0
        freed = await self._run(self._acts.drop, transfer)
        del self._transfers[place]
        return freed

    async def _land(self, partial: Path, entry: Entry) -> Entry:
        place = self.folders.canonical(entry.place)
        transfer = self._transfers.get(place) or Transfer(place, "", Wanted(*place))
        entry = dataclasses.replace(entry, place=place, used=self._last_used + 1)
        landed = await self._run(self._acts.land, partial, entry, transfer)
        self._transfers.pop(place, None)
        self._take_out(place)
        return self._put_in(landed)

    async def _delete(self, place: Place) -> int:
        before = self.counted
        await self._run(self._acts.delete, place)
        self._take_out(place)
        return before - self.counted

    async def _learn(self, place: Place, sha256: str | None, url: str | None) -> Entry | None:
        entry = self.entries.get(place)
        if entry is None:
            return None
        urls = entry.urls if url is None else entry.urls | {url}
        learnt = dataclasses.replace(entry, sha256=sha256 or entry.sha256, urls=urls)
        self._exchange(learnt)
        await self._run(self._acts.index.put, [learnt])
        return learnt

    async def _bake(self) -> int:
        entries = tuple(self.entries.values())
        await self._run(self._acts.bake, entries)
        self._dirty.clear()
        return len(entries)

    async def _close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        await self._run(self._acts.remember, *self._unwritten())
        await self._run(self._acts.index.close)
        await self._run(self._lock.release)
        self._thread.shutdown(wait=False)

    def _flush_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH.total_seconds(), self._flush)

    def _flush(self) -> None:
        self._timer = None
        self._thread.submit(self._acts.remember, *self._unwritten()).add_done_callback(_say_error)

    def _unwritten(self) -> tuple[dict[Place, int], Records | None]:
        """The uses since the last time, and everything when the index is behind."""
        used, self._dirty = self._dirty, {}
        if not self._acts.index.behind:
            return used, None
        return used, Records(tuple(self.entries.values()), tuple(self._transfers.values()))

    def _take_out(self, place: Place) -> None:
        entry = self.entries.pop(place, None)
        if entry is not None and not entry.baked:
            self.counted -= entry.size

    def _exchange(self, entry: Entry) -> None:
        """Other words about a file, in its old place in the order."""
        before = self.entries[entry.place]
        self.counted += (0 if entry.baked else entry.size) - (0 if before.baked else before.size)
        self.entries[entry.place] = entry

    def _put_in(self, entry: Entry) -> Entry:
        """A new file, as the one that was used last."""
        self._last_used += 1
        entry = dataclasses.replace(entry, used=self._last_used)
        self.entries[entry.place] = entry
        self.counted += 0 if entry.baked else entry.size
        self._dirty[entry.place] = entry.used
        self._flush_later()
        return entry


def _say_error(done: Future[None]) -> None:
    error = done.exception()
    if error is not None:
        _log.error("internal_error", where="models index", error=repr(error))
