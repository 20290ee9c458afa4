"""Simulated nodes that speak to a dispatcher over raw sockets: a load that costs little of the cores it shares."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from bisect import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from dispatcher.words import Source

MODELS, HELD = 5_000, 25
SIZE, CAP = 2_000_000_000, 50_000_000_000
NODE_TOKEN, USER_TOKEN = "node-token-of-the-benchmark", "user-token-of-the-benchmark"
RATES = {"disk": 1e9, "network": 1e8, "load": 6.0, "step": 0.15}


class Popularity:
    """Which model is asked for next: Zipf 1.0 over `MODELS`, the same at each run."""

    def __init__(self, seed: int = 7) -> None:
        self._rng = random.Random(seed)
        self._sums = list(accumulate(1 / rank for rank in range(1, MODELS + 1)))

    def model(self) -> int:
        return bisect(self._sums, self._rng.random() * self._sums[-1])

    def some(self, count: int) -> list[int]:
        """So many different ones."""
        found: dict[int, None] = {}
        while len(found) < count:
            found[self.model()] = None
        return list(found)


def name_of(model: int) -> str:
    return f"model-{model:04}.safetensors"


def number_of(name: str) -> int:
    return int(name[6:10])


def catalogue() -> list[Source]:
    return [
        Source("checkpoint", name_of(model), f"https://models.example/{model}", f"{model:064x}", SIZE)
        for model in range(MODELS)
    ]


def documents(popularity: Popularity, numbers: Iterator[int], count: int) -> list[dict[str, Any]]:
    """Jobs to submit."""
    return [
        {
            "id": f"job-{next(numbers)}",
            "checkpoint": name_of(popularity.model()),
            "params": {"prompt": "a mechanical cat that flies a spaceship " * 4, "steps": 25, "width": 768},
        }
        for _ in range(count)
    ]


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection that is kept, one request at a time."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the dispatcher closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        _, told, length = head.lower().partition(b"content-length:")
        size = int(length.partition(b"\r\n")[0]) if told else 0
        if len(rest) >= size and self._answer is not None:
            self._buffer = b""
            self._answer.set_result((int(head[9:12]), rest[:size]))

    async def post(self, path: str, token: str, body: bytes) -> bytes:
        """The body of the answer. Raises `ConnectionError`, also for a status that is no success."""
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n"
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        status, answer = await self._answer
        if status >= 300:
            raise ConnectionError(f"{path} was answered {status}: {answer[:300]!r}")
        return answer

    def close(self) -> None:
        self._transport.close()


async def connected(port: int) -> Connection:
    _, made = await asyncio.get_running_loop().create_connection(Connection, "::1", port)
    return made


@dataclass(slots=True)
class Node:
    """One node: what it has on disk, the latest used last and in memory, and the job that it does."""

    id: str
    connection: Connection
    models: dict[int, None]
    job: tuple[str, int] | None = None
    loads: int = 0
    _head: str = field(init=False)

    def __post_init__(self) -> None:
        node = {"id": self.id, "gpu": "rtx4090", "vram_gb": 24, "instance": self.id, "rates": RATES}
        disk = {"used": HELD * SIZE, "cap": CAP, "free": CAP - HELD * SIZE}
        self._head = f'{{"node":{json.dumps(node)},"disk":{json.dumps(disk)},"wait":0,"models":['

    async def work(self) -> bool:
        """Ask for a job; whether there was one."""
        files = [_FILES[model] for model in self.models]
        latest = next(reversed(self.models))
        files[-1] = files[-1].replace('"disk"', '"vram"')
        body = f"{self._head}{','.join(files)}]}}".encode()
        answer = json.loads(await self.connection.post("/availability", NODE_TOKEN, body))
        for order in answer.get("evict", ()):
            self.models.pop(number_of(order["name"]), None)
        for order in answer.get("download", {}).get("checkpoints", ()):
            self._fetch(number_of(order["name"]))
        given = answer.get("generation")
        if given is None:
            return False
        self.job = (given["id"], given["token"])
        model = number_of(given["checkpoint"])
        self.loads += model != latest
        self._fetch(model)
        self.models[model] = self.models.pop(model)
        return True

    def _fetch(self, model: int) -> None:
        """Have it at once, in the place of what was used the longest ago."""
        if model not in self.models:
            while len(self.models) >= HELD:
                del self.models[next(iter(self.models))]
            last, _ = self.models.popitem()
            self.models |= {model: None, last: None}

    async def finish(self) -> None:
        """Say that its job is done, if it has one."""
        if self.job is None:
            return
        (job, token), self.job = self.job, None
        result = {**_RESULT, "id": job}
        body = json.dumps({"token": token, "result": result, "dead": False}).encode()
        await self.connection.post(f"/jobs/{job}/result", NODE_TOKEN, body)


_FILES = [
    json.dumps(
        {"kind": "checkpoint", "name": name_of(model), "sha256": f"{model:064x}", "size": SIZE, "tier": "disk"},
        separators=(",", ":"),
    )
    for model in range(MODELS)
]
_RESULT: dict[str, Any] = {
    "status": "succeeded",
    "images": [
        {
            "index": 0,
            "url": "https://storage.example/bucket/jobs/images/0.png",
            "key": "jobs/images/0.png",
            "format": "png",
            "width": 768,
            "height": 768,
            "bytes": 712_345,
            "sha256": "0123456789abcdef" * 4,
            "seed": 1234567890,
        }
    ],
    "worker": {"id": "node", "version": "0"},
    "created_at": "2026-01-01T00:00:00Z",
    "finished_at": "2026-01-01T00:00:06Z",
}


async def a_fleet(count: int, ports: Iterable[int], popularity: Popularity) -> list[Node]:
    """So many nodes, each with a connection to one of the dispatchers, models of the common kind on its disk."""
    turns = itertools.cycle(ports)
    return [
        Node(f"node-{number:04}", await connected(next(turns)), dict.fromkeys(popularity.some(HELD)))
        for number in range(count)
    ]
