"""A life of files on a disk, killed before each single step that it takes: one forked process for each."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.made import safetensors
from worker import log
from worker.mentions import Place
from worker.models.base import Entry, Wanted
from worker.models.disk import Disk
from worker.models.folders import Folders
from worker.models.index import Index
from worker.models.layout import LAYOUTS

OLD, NEW, KEPT = (Place("lora", name) for name in ("old.safetensors", "deep/new.safetensors", "kept.safetensors"))
FIRST, SECOND = safetensors(bytes(16)), safetensors(bytes(range(64)))
BAKED = Place("checkpoint", "baked.safetensors")


def folders_at(root: Path) -> Folders:
    return Folders(root / "models", LAYOUTS["comfyui"])


async def life(root: Path) -> None:
    """Files land, are used, are replaced and go; one transfer is left, one is given up."""
    disk = await Disk.open(folders_at(root))
    await land(disk, OLD, FIRST)
    await land(disk, NEW, FIRST)
    disk.touch(OLD)
    await land(disk, NEW, SECOND)
    await disk.delete(OLD)
    (await disk.begin(KEPT, "key", Wanted(*KEPT))).write_bytes(b"half")
    (await disk.begin(OLD, "key", Wanted(*OLD))).write_bytes(b"half")
    await disk.drop(OLD)
    await disk.aclose()


async def land(disk: Disk, place: Place, content: bytes) -> None:
    partial = await disk.begin(place, "key", Wanted(*place))
    partial.write_bytes(content)
    partial.with_name(f"{partial.name}.json").write_text("{}")
    sha256 = hashlib.sha256(content).hexdigest()
    await disk.land(partial, Entry(place, len(content), 0, sha256, frozenset({f"https://x/{place.name}"})))


def main(root: Path) -> None:
    """Print how many steps a whole life has; the remains of each death lie in ``root`` under its number."""
    log.setup("error")
    for step in range(1, 1000):
        place = root / str(step)
        baked = folders_at(place).path(BAKED)
        baked.parent.mkdir(parents=True)
        baked.write_bytes(FIRST)
        child = os.fork()
        if child == 0:
            _die_before(step)
            asyncio.run(life(place))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            print(step, os.waitstatus_to_exitcode(status))
            return


def _die_before(step: int) -> None:
    taken = 0

    def counted(act: Callable[..., Any]) -> Callable[..., Any]:
        def acting(*args: Any, **kwargs: Any) -> Any:
            nonlocal taken
            taken += 1
            if taken == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*args, **kwargs)

        return acting

    for owner, names in (
        (Path, ("replace", "unlink", "touch", "rmdir", "mkdir")),
        (os, ("fsync",)),
        (Index, ("_write",)),
    ):
        for name in names:
            setattr(owner, name, counted(getattr(owner, name)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
