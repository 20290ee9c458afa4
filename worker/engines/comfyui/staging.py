"""What the server must find before a graph runs: input images, and what its model files hold."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from worker.engines.comfyui.api import Server
from worker.engines.comfyui.architecture import Contents, contents, read_header
from worker.engines.comfyui.disk import OURS, Folders
from worker.engines.comfyui.modelspec import contents_said
from worker.engines.comfyui.outputs import ending_of
from worker.engines.comfyui.parts import key
from worker.errors import EngineFault, InvalidJob

log = structlog.get_logger(__name__)

REMEMBERED = 512


async def stage(server: Server, images: Mapping[str, bytes], name: str) -> dict[str, str]:
    """Put the images into a folder of their own below the server's input; by field, what a graph calls them.

    They are real files that the server writes itself: it refuses links that lead out of that folder.
    """
    return {
        field: await server.upload(data, f"{at}.{ending_of(data)}", subfolder=f"{OURS}/{name}")
        for at, (field, data) in enumerate(images.items())
    }


class Shelf:
    """What model files hold, read once for each state of a file."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], Contents] = {}

    async def contents(
        self, server: Server, folders: Folders, wanted: Sequence[tuple[str, str]]
    ) -> dict[str, Contents]:
        """What each of the files holds, by `parts.key`; one that cannot be read is left out where there are others.

        Where the model folders cannot be reached from here, the server is asked what the file says of itself.
        Raises `InvalidJob` when nothing could be told of any, and what `read_header` raises of the only one.
        """
        found: dict[str, Contents] = {}
        for folder, name in wanted:
            try:
                held = await self._one(server, folders, folder, name)
            except (EngineFault, InvalidJob) as error:
                if len(wanted) == 1:
                    raise
                log.warning("engine_model_unreadable", model=name, error=error.message)
                continue
            if held is not None:
                found[key(folder, name)] = held
        if wanted and not found:
            raise InvalidJob(
                f"the architecture of {wanted[0][1][:200]} could not be read: the server's model folders are not "
                "within reach, and the file does not say it itself; send a workflow",
                field="checkpoint",
            )
        return found

    async def _one(self, server: Server, folders: Folders, folder: str, name: str) -> Contents | None:
        path = await asyncio.to_thread(folders.model, folder, name)
        if path is not None:
            return await asyncio.to_thread(self._read, path)
        return contents_said(await server.metadata(folder, name))

    def _read(self, path: Path) -> Contents:
        try:
            stat = path.stat()
        except OSError as error:
            raise EngineFault(f"{path.name}: cannot be read: {error.strerror}") from None
        state = (str(path), stat.st_mtime_ns, stat.st_size)
        if state not in self._known:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[state] = contents(read_header(path))
        return self._known[state]
