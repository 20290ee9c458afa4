"""A disk of model files in a folder of ComfyUI's, and files on it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.support.made import safetensors
from worker.mentions import Place
from worker.models.base import Entry, Wanted
from worker.models.disk import Disk
from worker.models.folders import Folders
from worker.models.layout import LAYOUTS

BYTES = safetensors()
A, B, C = (Place("lora", f"{name}.safetensors") for name in "abc")
NOW = timedelta(0)
SHA = "ab" * 32


def comfyui_folders(tmp_path: Path) -> Folders:
    (tmp_path / "ComfyUI" / "models").mkdir(parents=True)
    return Folders(tmp_path / "ComfyUI" / "models", LAYOUTS["comfyui"])


def put(folders: Folders, *places: Place, content: bytes = BYTES) -> None:
    """Files that somebody else wrote."""
    for place in places:
        path = folders.path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@asynccontextmanager
async def opened(folders: Folders, **more: Any) -> AsyncIterator[Disk]:
    disk = await Disk.open(folders, **more)
    try:
        yield disk
    finally:
        await disk.aclose()


async def landed(disk: Disk, place: Place, content: bytes = BYTES, url: str = "https://x/y") -> Entry:
    """A file that we fetched."""
    partial = await disk.begin(place, SHA, Wanted(*place, url=url))
    partial.write_bytes(content)
    return await disk.land(partial, Entry(place, len(content), 0, SHA, frozenset({url})))


def ours(folders: Folders) -> list[str]:
    """All files in the folders but for the worker's own."""
    found = (path for path in folders.root.rglob("*") if path.is_file() and folders.ours not in path.parents)
    return sorted(str(path.relative_to(folders.root)) for path in found)


def failing(number: int) -> Callable[..., Any]:
    """Something of the file system's that answers with this error."""

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail
