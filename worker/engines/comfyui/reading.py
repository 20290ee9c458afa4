"""Getting what a prompt made: from disk where that is shared, else over HTTP; while later nodes still run."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from worker.engines.comfyui.api import Server
from worker.engines.comfyui.disk import Folders
from worker.engines.comfyui.outputs import Item, Made, is_result, of_node
from worker.errors import WorkerError
from worker.tasks import cancel_all

ABREAST = 4
"""Files that are fetched at a time."""


class Reading:
    """The files of one prompt, each read once. Close it, and no task of its own is left."""

    def __init__(self, server: Server, folders: Folders, own: frozenset[str]) -> None:
        self._server, self._folders, self._own = server, folders, own
        self._tasks: dict[Item, asyncio.Task[bytes | None]] = {}
        self._abreast = asyncio.Semaphore(ABREAST)

    def begin(self, executed: Mapping[str, Any]) -> None:
        """Start to read what nodes told of that have ended."""
        for node, output in executed.items():
            for made in of_node(node, output):
                if made.item is not None and is_result(made, self._own):
                    self._task(made.item)

    async def all(self, made: Sequence[Made]) -> tuple[list[tuple[Made, bytes]], list[Item]]:
        """The bytes of each in order, and the files that are not there. Raises `EngineCrashed`."""
        parts: list[tuple[Made, bytes]] = []
        missing: list[Item] = []
        for one in made:
            if one.item is not None:
                self._task(one.item)
        for one in made:
            data = one.data if one.text is None else one.text.encode("utf-8", "surrogatepass")
            if one.item is not None:
                data = await self._result(one.item)
            if data is None:
                missing += [one.item] if one.item is not None else []
            else:
                parts.append((one, data))
        return parts, missing

    async def _result(self, item: Item) -> bytes | None:
        """What the early look got; one that failed or came too early is made again, now that the prompt has ended."""
        try:
            data = await self._task(item)
        except WorkerError:
            data = None
        return data if data is not None else await self._read(item)

    def _task(self, item: Item) -> asyncio.Task[bytes | None]:
        if item not in self._tasks:
            self._tasks[item] = asyncio.create_task(self._read(item), name="comfyui-read")
        return self._tasks[item]

    async def _read(self, item: Item) -> bytes | None:
        async with self._abreast:
            data = await asyncio.to_thread(self._folders.read, item)
            return data if data is not None else await self._server.view(item)

    async def aclose(self) -> None:
        await cancel_all(set(self._tasks.values()))
