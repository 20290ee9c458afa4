"""The disk after SIGKILL, before each single step that it takes."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
from pathlib import Path

from tests.support.killed_disk import BAKED, FIRST, KEPT, NEW, OLD, SECOND, folders_at
from worker.mentions import Place
from worker.models.disk import Disk
from worker.models.folders import partial_of

MEANT = {NEW: (FIRST, SECOND), OLD: (FIRST,), BAKED: (FIRST,)}


async def remains(root: Path) -> set[Place]:
    """What the next run finds, after all that must hold whenever the last one was killed."""
    folders = folders_at(root)
    disk = await Disk.open(folders)
    scan = folders.scan()
    for place, entry in disk.entries.items():
        content = folders.path(place).read_bytes()
        assert content in MEANT[place], "only whole files of ours are served"
        assert entry.baked is (place == BAKED)
        if place != BAKED:
            assert entry.sha256 == hashlib.sha256(content).hexdigest(), "with the hash of these very bytes"
            assert entry.urls == {f"https://x/{place.name}"}
    assert set(scan.files) == set(disk.entries), "nothing lies there that nobody knows"
    assert {partial_of(path) for path in scan.leftovers} <= {left.path for left in await disk.left()}
    assert disk.counted == sum(entry.size for entry in disk.entries.values() if not entry.baked)
    assert (disk.unusable, disk.others) == ({}, 0)
    await disk.aclose()
    return set(disk.entries)


async def all_remains(root: Path, steps: int) -> list[set[Place]]:
    return [await remains(root / str(step)) for step in range(1, steps + 1)]


def test_a_kill_at_any_step_leaves_things_right(tmp_path: Path) -> None:
    """Nothing half is served, nothing leaks, a hash is that of the bytes, and what came with the image still did."""
    command = [sys.executable, "-m", "tests.support.killed_disk", str(tmp_path)]
    run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    steps, code = map(int, run.stdout.split())
    assert (code, steps > 30) == (0, True)
    found = asyncio.run(all_remains(tmp_path, steps))
    assert found[-1] == {BAKED, NEW}
    assert {OLD, NEW, BAKED} in found
    assert KEPT not in set[Place]().union(*found)
