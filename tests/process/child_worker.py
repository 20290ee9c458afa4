"""A worker that does nothing but own a server, as a process that tests may kill: takes orders on stdin.

``python -m tests.process.child_worker ADDRESS COMMAND...``; each order is answered by a line of JSON on stdout.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from worker import log
from worker.engines.child import Child, Reaper, prepare_as_init, processes


class Orders:
    """What the worker can be told; each method is an order."""

    def __init__(self, child: Child) -> None:
        self._child = child

    async def start(self) -> int | None:
        await self._child.start()
        return self._child.pid

    async def stop(self) -> str | None:
        await self._child.stop()
        return self._child.end

    async def kill(self) -> None:
        self._child.stop_at_once()

    async def ended(self) -> str:
        return await self._child.ended()

    async def lines(self) -> tuple[str, ...]:
        return self._child.log.since(0)

    async def stranger(self) -> tuple[str | None, tuple[int, ...]]:
        return self._child.stranger(), self._child.listens_on()

    async def marked(self) -> list[int]:
        """What can be seen to be the server's by its environment."""
        found = {pid: processes.variable_of(pid, "SD_WORKER_SERVER") for pid in processes.table()}
        return [pid for pid, text in found.items() if text]

    async def codes(self) -> list[int]:
        """The exit codes of many short processes of our own, as asyncio got them."""
        started = [await asyncio.create_subprocess_exec("sh", "-c", f"exit {number}") for number in range(20)]
        return [await process.wait() for process in started]

    async def zombies(self) -> list[int]:
        me = os.getpid()
        return [one.pid for one in processes.table().values() if one.parent == me and not one.alive]


async def _work(address: str, user: str | None, command: list[str]) -> None:
    prepare_as_init()
    child = Child(command, {"PATH": os.environ["PATH"]}, [address], user=user)
    reaper = asyncio.create_task(Reaper(child, unclaimed_s=0.2).run(), name="reaper")
    orders = Orders(child)
    while order := (await asyncio.to_thread(sys.stdin.readline)).strip():
        act: Callable[[], Awaitable[Any]] = getattr(orders, order)
        print(json.dumps(await act()), flush=True)
    await child.stop()
    reaper.cancel()
    await asyncio.wait([reaper])


if __name__ == "__main__":
    log.setup("info", "json", sys.stderr)
    asyncio.run(_work(sys.argv[1], sys.argv[2] or None, sys.argv[3:]))
