"""A disk of some megabytes of its own, made by the strongest means that this machine allows.

A filesystem of limited size cannot be mounted by everybody, and only for a process and its children without anybody
else seeing it. So a story that needs one runs in a process of its own: `ran` starts it, and says what disk it had.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import importlib.util
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.waiting import wait_until
from worker import log

ROOT = Path(__file__).parents[2]
PAGE = 4096
BALLAST = "ballast"
REAL = {
    "a tmpfs in a user namespace": ("unshare", "--user", "--map-root-user", "--mount"),
    "a tmpfs in a mount namespace": ("unshare", "--mount"),
}
INJECTED = "no filesystem of its own: ENOSPC and statvfs are injected, since nothing may be mounted here"


@dataclass(frozen=True)
class SmallDisk:
    """``root`` is its top, ``beside`` a folder on another disk, ``size`` in bytes."""

    root: Path
    beside: Path
    size: int
    injected: bool

    def free(self) -> int:
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def fill(self, leave: int = 0) -> None:
        """Have something that is not ours take all but so many bytes, whole pages of them."""
        with (self.root / BALLAST).open("ab", buffering=0) as ballast:
            while (more := self.free() - leave) > 0:
                with contextlib.suppress(OSError):
                    ballast.write(bytes(more))

    def relieve(self) -> None:
        """Have all that go away."""
        (self.root / BALLAST).unlink()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Nothing can be written on it meanwhile; nothing may be open for writing."""
        if self.injected:
            with _refusing(self.root):
                yield
            return
        _mount("-o", "remount,ro", str(self.root))
        try:
            yield
        finally:
            _mount("-o", "remount,rw", str(self.root))

    @contextmanager
    def watched(self) -> Iterator[Lowest]:
        """The least that was free while the block lasts."""
        lowest = Lowest(self.free())

        def look() -> bool:
            lowest.free = min(lowest.free, self.free())
            return False

        task = asyncio.create_task(wait_until(look, timeout=600), name="watched-disk")
        try:
            yield lowest
        finally:
            look()
            task.cancel()


@dataclass
class Lowest:
    free: int


Story = Callable[[SmallDisk], Coroutine[Any, Any, None]]


class Way(NamedTuple):
    """In words, and the command that a process is started by."""

    name: str
    command: tuple[str, ...]


@functools.cache
def way() -> Way:
    """The first that works here."""
    probe = ("sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt && test $(stat -f -c %b /mnt) -lt 100")
    for name, command in REAL.items():
        try:
            tried = subprocess.run([*command, *probe], check=False, capture_output=True, timeout=30)
        except FileNotFoundError:
            continue
        if tried.returncode == 0:
            return Way(name, command)
    return Way(INJECTED, ())


def ran(story: Story, size: int, folder: Path, by: Way | None = None) -> str:
    """Run the story on a disk of its own, mounted below ``folder``; on which. What it asserts fails here."""
    name, command = by or way()
    program = [sys.executable, "-m", "tests.support.small_disk", name, str(size), str(folder)]
    told = subprocess.run(
        [*command, *program, story.__code__.co_filename, story.__name__],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert told.returncode == 0, f"on {name}:\n{told.stdout[-2000:]}{told.stderr[-6000:]}"
    return name


def main(name: str, size: int, folder: Path, file: str, story: str) -> None:
    log.setup("error")
    root = folder / "disk"
    root.mkdir(parents=True)
    injected = name == INJECTED
    if injected:
        _inject(root, size)
    else:
        _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(root))
    spec = importlib.util.spec_from_file_location("story", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["story"] = module
    spec.loader.exec_module(module)
    asyncio.run(getattr(module, story)(SmallDisk(root, folder, size, injected)))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, timeout=30)


def _inject(root: Path, size: int) -> None:
    """Have a folder seem to be a disk of this size to `os.statvfs` and `os.pwrite`, which bring the models."""
    statvfs, pwrite, guard = os.statvfs, os.pwrite, threading.Lock()

    def left() -> int:
        return max(0, size - _used(root))

    def small_statvfs(path: Any) -> os.statvfs_result:
        found = statvfs(path)
        if not Path(path).is_relative_to(root):
            return found
        values = list(found)
        values[0], values[1] = PAGE, PAGE
        values[2], values[3], values[4] = size // PAGE, left() // PAGE, left() // PAGE
        return os.statvfs_result(values)

    def small_pwrite(fd: int, data: Any, offset: int) -> int:
        with guard:
            if Path(f"/proc/self/fd/{fd}").readlink().is_relative_to(root) and len(data) > left():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return pwrite(fd, data, offset)

    os.statvfs, os.pwrite = small_statvfs, small_pwrite


def _used(root: Path) -> int:
    """Bytes of all files below, in whole pages."""
    used = 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                found = os.lstat(os.path.join(folder, name))  # noqa: PTH118 - called for each write
            except FileNotFoundError:
                continue
            used += -(-min(found.st_size, found.st_blocks * 512 or found.st_size) // PAGE) * PAGE
            assert stat.S_ISREG(found.st_mode)
    return used


@contextmanager
def _refusing(root: Path) -> Iterator[None]:
    """Have everything that opens for writing, makes, renames or deletes below refused."""
    refusal = OSError(errno.EROFS, os.strerror(errno.EROFS))
    before = {name: getattr(os, name) for name in ("open", "mkdir", "replace", "unlink", "rmdir")}

    def refusing(name: str) -> Callable[..., Any]:
        def act(path: Any, *args: Any, **kwargs: Any) -> Any:
            writes = name != "open" or (args and args[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if writes and Path(os.fsdecode(path)).is_relative_to(root):
                raise refusal
            return before[name](path, *args, **kwargs)

        return act

    for name in before:
        setattr(os, name, refusing(name))
    try:
        yield
    finally:
        for name, act in before.items():
            setattr(os, name, act)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5])
