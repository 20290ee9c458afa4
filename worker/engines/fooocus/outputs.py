"""The files that the server leaves: one a picture, for ever, unless it was told to keep a short history.

0.5 deletes them when asked. 0.4 cannot: they are deleted here where its folder is ours too, which is proven by the
file itself, since its name holds the job's random id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import structlog

from worker.engines.fooocus.server import Server, file_of
from worker.errors import WorkerError

log = structlog.get_logger(__name__)

FOLDERS = (Path("/app/outputs/files"), Path("/workspace/Fooocus-API/outputs/files"), Path("outputs/files"))
"""Where the server's images and usual installations have it."""

KEPT = 50
"""Finished jobs that a server keeps before its growing folder is worth a warning."""


class Outputs:
    """Takes away what the server keeps, and warns once where it cannot."""

    def __init__(self, folders: Sequence[Path] = FOLDERS) -> None:
        self._folders = tuple(folders)
        self._warned = False

    async def remove(self, server: Server, job: str, urls: Sequence[str], *, deletes: bool) -> None:
        """After the pictures were read. Never fails: what stays behind is only told."""
        try:
            if deletes and await server.delete(job):
                return
            gone = await asyncio.to_thread(self._unlink, job, urls)
            if not gone and not self._warned and (await server.queue()).finished >= KEPT:
                self._warned = True
                log.warning("engine_outputs_grow", advice="start the server with --queue-history 1")
        except WorkerError as error:
            log.info("engine_outputs_kept", job=job, error=error.message)

    def _unlink(self, job: str, urls: Sequence[str]) -> bool:
        """Delete each file where it is found; whether any was."""
        gone = False
        for url in urls:
            name = file_of(url)
            for folder in self._folders if name is not None and job in name else ():
                try:
                    (folder / str(name)).unlink()
                except OSError:
                    continue
                gone = True
        return gone
