"""The SHA-256 of a whole file, in a thread that ends when nobody wants it any more."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from pathlib import Path

CHUNK = 4_000_000


async def sha256_of(path: Path) -> str | None:
    """The hash as 64 hex digits; None for a file that cannot be read, or that changed while it was."""
    stop = threading.Event()
    try:
        return await asyncio.to_thread(_hashed, path, stop)
    finally:
        stop.set()


def _hashed(path: Path, stop: threading.Event) -> str | None:
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            before = path.stat()
            while not stop.is_set() and (chunk := file.read(CHUNK)):
                digest.update(chunk)
            after = path.stat()
    except OSError:
        return None
    unchanged = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    return digest.hexdigest() if unchanged and not stop.is_set() else None
