"""Our HTTP service on a port of its own, for the time of a context."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp

from worker.tasks import cancel_all
from worker.web.server import serve


@dataclass(frozen=True)
class Service:
    port: int
    task: asyncio.Task[None]

    def url(self, path: str = "", *, host: str = "[::1]") -> str:
        return f"http://{host}:{self.port}{path}"


@asynccontextmanager
async def serving(app: ASGIApp, host: str = "::", port: int = 0) -> AsyncIterator[Service]:
    """Serve as the worker does; raises what `serve` raises when it cannot listen."""
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(app, host, port, on_listening=listening.set_result), name="api")
    try:
        both: set[asyncio.Future[Any]] = {task, listening}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield Service(listening.result(), task)
    finally:
        await cancel_all({task})
