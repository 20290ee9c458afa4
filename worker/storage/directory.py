"""Images, other files and result documents in a folder of this machine, or of a mount that several machines share.

Every file is written under another name in its own folder, synced, and only then given its name: whoever reads
a name reads a whole file, also after a crash. The mark gets its name by a hard link, so the first writer wins
among any number of processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from worker.errors import DiskFull, InvalidJob, UploadFailed
from worker.job import Job
from worker.result import FileResult, ImageResult, Result
from worker.storage.base import R, Storable
from worker.storage.keys import HASH_LENGTH, Keys, failures_among, in_order, standing, told

Named = TypeVar("Named", ImageResult, FileResult)

IMAGE_GONE, FILE_GONE = "image_deleted", "file_deleted"
"""Warnings in a standing result that is settled again after its local images or files were purged."""

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")
_ARTIFACT = re.compile(rf"\d+-[0-9a-f]{{{HASH_LENGTH}}}\.[a-z0-9]+")
_ORPHANED = timedelta(hours=1)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


@dataclass(frozen=True, slots=True)
class Purged:
    """What a purge removed: local images and files, their bytes, and what a dead process left half-written."""

    artifacts: int = 0
    bytes: int = 0
    orphans: int = 0


class DirectoryStorage:
    """``root`` is created on the first write; ``keep`` 0 keeps everything for ever.

    Raises `DiskFull` without space, `UploadFailed` for any other trouble with the folder.
    """

    name = "directory"

    def __init__(
        self,
        root: Path,
        *,
        keep: timedelta = timedelta(0),
        result_prefix: str | None = None,
        link: Callable[[Path, Path], None] = os.link,
    ) -> None:
        self._root = Path(os.path.abspath(root))  # noqa: PTH100 - resolve() would follow a link that is swapped later
        self._keep = keep
        self._keys = Keys(result_prefix=result_prefix)
        self._link = link

    def accepts(self, job: Job, outputs: int) -> None:
        """Any job of any size."""

    def marks(self, job: Job) -> bool:
        return True

    async def find_mark(self, job: Job) -> Result | None:
        return await asyncio.to_thread(self._find_mark, job)

    async def find_result(self, job_id: str) -> Result | None:
        """As `Archive.find_result`."""
        return await asyncio.to_thread(self._find_result, job_id)

    async def find_failures(self, job_id: str) -> tuple[Result, ...]:
        return await asyncio.to_thread(self._failures, job_id)

    async def put_artifact(self, job: Job, artifact: Storable[R]) -> R:
        key = self._keys.artifact(job, artifact)
        path = self._path(key)
        await asyncio.to_thread(self._replace, path, artifact.data)
        return artifact.result(url=path.as_uri(), key=key)

    async def put_mark(self, job: Job, result: Result) -> Result:
        return await asyncio.to_thread(self._put_mark, job, result)

    async def put_failure(self, job: Job, result: Result, attempt: int) -> None:
        path = self._path(self._keys.failure(job, attempt))
        await asyncio.to_thread(self._replace, path, result.to_json(base64=False))

    async def check(self) -> str:
        path = self._path(self._keys.trial())
        await asyncio.to_thread(self._try, path)
        return f"directory {self._root} can be written"

    async def aclose(self) -> None:
        """Nothing is open."""

    async def purge(self, now: datetime) -> Purged:
        """Delete local images and files older than ``keep``, and what dead processes left half-written.

        Result documents stay. A directory that is a mount keeps everything: it outlives this node.
        """
        return await asyncio.to_thread(self._purge, now)

    def _path(self, key: str) -> Path:
        path = Path(os.path.normpath(self._root / key))
        if not path.is_relative_to(self._root) or path == self._root:
            raise InvalidJob("leads out of the storage directory", field="id")
        return path

    def _find_mark(self, job: Job) -> Result | None:
        body = _read(self._path(self._keys.mark(job)))
        found = None if body is None else standing(job, body)
        return None if found is None else self._linked(found)

    def _find_result(self, job_id: str) -> Result | None:
        body = _read(self._path(self._keys.mark_of(job_id)))
        success = None if body is None else told(body)
        if success is not None:
            return self._linked(success)
        return next(reversed(self._failures(job_id)), None)

    def _failures(self, job_id: str) -> tuple[Result, ...]:
        folder = self._path(self._keys.failures_of(job_id)).parent
        with _translated(folder):
            numbers = failures_among(path.name for path in folder.iterdir()) if folder.is_dir() else []
        return in_order(_read(self._path(self._keys.failure_of(job_id, number))) for number in numbers)

    def _linked(self, result: Result) -> Result:
        images = tuple(self._relinked(image) for image in result.images)
        files = tuple(self._relinked(file) for file in result.files)
        gone = (*([IMAGE_GONE] if _lost(images) else []), *([FILE_GONE] if _lost(files) else []))
        warnings = tuple(dict.fromkeys((*result.warnings, *gone)))
        return result.model_copy(update={"images": images, "files": files, "warnings": warnings})

    def _relinked(self, output: Named) -> Named:
        if output.key is None:
            return output
        path = self._path(output.key)
        return output.model_copy(update={"url": path.as_uri() if path.is_file() else None})

    def _put_mark(self, job: Job, result: Result) -> Result:
        path = self._path(self._keys.mark(job))
        found = self._find_mark(job)
        if found is not None:
            return found
        body = result.to_json(base64=False)
        with _translated(path), _written(path, body) as temporary:
            try:
                self._link(temporary, path)
            except FileExistsError:
                pass
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                temporary.replace(path)
        return self._find_mark(job) or self._overwritten(job, path, body)

    def _overwritten(self, job: Job, path: Path, body: bytes) -> Result:
        """Put the success where something stood that is none: such a thing never stops a job."""
        self._replace(path, body)
        found = self._find_mark(job)
        if found is None:
            raise UploadFailed(f"{path} does not hold what was written to it")
        return found

    def _replace(self, path: Path, data: bytes) -> None:
        with _translated(path), _written(path, data) as temporary:
            temporary.replace(path)

    def _try(self, path: Path) -> None:
        self._replace(path, b"written by sd-worker check\n")
        with _translated(path):
            path.unlink(missing_ok=True)

    def _purge(self, now: datetime) -> Purged:
        artifacts = size = orphans = 0
        purging = bool(self._keep) and not self._root.is_mount()
        with _translated(self._root):
            for path in _files(self._root):
                if _TEMPORARY.fullmatch(path.name):
                    orphans += _removed(path, now - _ORPHANED) is not None
                elif purging and _ARTIFACT.fullmatch(path.name):
                    removed = _removed(path, now - self._keep)
                    artifacts += removed is not None
                    size += removed or 0
        return Purged(artifacts, size, orphans)


def _lost(outputs: Sequence[ImageResult | FileResult]) -> bool:
    """Whether anything was stored here that is not here any more."""
    return any(output.key and not output.url for output in outputs)


def _read(path: Path) -> bytes | None:
    with _translated(path):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFull(f"no space to write {path.name}") from error
        raise UploadFailed(f"{path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _written(path: Path, data: bytes) -> Iterator[Path]:
    """A synced file with this content beside ``path``, gone after the block; what the block renames is synced too."""
    _make(path.parent)
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _make(folder: Path) -> None:
    if folder.is_dir():
        return
    _make(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> Iterator[Path]:
    for where, _, names in os.walk(folder):
        yield from (Path(where, name) for name in names)


def _removed(path: Path, before: datetime) -> int | None:
    """The size of a file that was older than that and is gone now; None where it stays or was gone already."""
    try:
        found = path.lstat()
        if found.st_mtime >= before.timestamp():
            return None
        path.unlink()
    except FileNotFoundError:
        return None
    return found.st_size
