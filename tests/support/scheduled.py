"""A worker's driver before a scheduling server in virtual time, without sockets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx

from tests.support.queues import taken
from tests.support.receiver import Answer, Request, ScriptedServer
from tests.support.scheduling import FullServer, a_node
from tests.support.virtual import VirtualClock, takes
from worker.node import Node
from worker.queues.availability import AvailabilityQueue
from worker.queues.base import Delivery
from worker.queues.policy import Policy
from worker.tasks import cancel_all

VISIBILITY = timedelta(seconds=40)
POLICY = Policy(visibility=VISIBILITY)
BODY = b'{"params": {"prompt": "a cat"}}'


class InProcess(httpx.AsyncBaseTransport):
    """Takes requests to a server without a socket, so that time may be virtual; ``latency_s`` each way.

    What has arrived is done there, also when its sender is gone meanwhile. While ``broken`` nothing arrives.
    """

    def __init__(self, server: ScriptedServer, *, latency_s: float = 0.01) -> None:
        self.server = server
        self.latency_s = latency_s
        self.broken = False
        self.at: list[tuple[float, str]] = []
        self._answering: set[asyncio.Task[Answer]] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        if self.broken:
            raise httpx.ConnectError("no way there", request=request)
        self.at.append((asyncio.get_running_loop().time(), request.url.path))
        target = request.url.raw_path.decode()
        headers = {name.lower(): value for name, value in request.headers.items()}
        await takes(self.latency_s)
        asked = Request(request.method, target, headers, body, 0)
        self.server.requests.append(asked)
        answering = asyncio.create_task(self.server.reply(asked), name="in-process-reply")
        self._answering.add(answering)
        answering.add_done_callback(self._answering.discard)
        await asyncio.wait({answering})
        if answering.cancelled():
            raise httpx.ReadError("cut off", request=request)
        answer = answering.result()
        await takes(self.latency_s)
        return httpx.Response(answer.status, headers=dict(answer.headers), content=answer.body)

    def sever(self) -> None:
        """Nothing arrives any more, and who waits for an answer is gone as the server sees it."""
        self.broken = True
        for answering in self._answering:
            answering.cancel()

    def mend(self) -> None:
        self.broken = False

    def times(self, path: str) -> list[float]:
        """When requests for this path were sent."""
        return [at for at, asked in self.at if asked == path]

    async def aclose(self) -> None:
        await cancel_all(set(self._answering))


@asynccontextmanager
async def facing(
    server: ScriptedServer, node: Node | None = None, **options: Any
) -> AsyncIterator[tuple[AvailabilityQueue, InProcess]]:
    """A driver in virtual time, and its way to the server; it is closed at the end."""
    way = InProcess(server)
    options = {"rng": random.Random(1), **options}
    queue = AvailabilityQueue("http://scheduler", node or a_node(), VirtualClock(), transport=way, **options)
    try:
        yield queue, way
    finally:
        await queue.aclose()
        await way.aclose()


def a_server() -> FullServer:
    return FullServer(VirtualClock(), POLICY)


async def holding(server: FullServer, queue: AvailabilityQueue, *job_ids: str) -> list[Delivery]:
    for job_id in job_ids:
        await server.queue.submit(job_id, BODY)
    return [await taken(queue) for _ in job_ids]


async def status_of(server: FullServer, job_id: str) -> str:
    state = await server.queue.state(job_id)
    assert state is not None
    return state.status


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


def events(logs: Any) -> list[str]:
    return [line["event"] for line in logs]
