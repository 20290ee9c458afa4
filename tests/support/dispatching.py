"""A dispatcher on a real socket, over a real database, and those who talk to it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from dispatcher import service
from dispatcher.service import Dispatcher
from dispatcher.settings import Settings, load_settings
from dispatcher.upkeep import Pace
from dispatcher.view import View
from tests.support.databases import emptied_file
from worker.clock import Clock, SystemClock

SPACE = 50_000_000_000
MODEL = "dreamshaper_8.safetensors"
USER, NODE = "user-token-of-the-tests", "node-token-of-the-tests"
AS_USER = {"authorization": f"Bearer {USER}"}
AS_NODE = {"authorization": f"Bearer {NODE}"}
QUICK = Pace(backlog=0.2, settled=0.001, tick=0.02, sweep=0.05, save=0.05, nodes=0.05, catalogue=0.1, coverage=0.05)


def settings_of(url: str, **variables: str) -> Settings:
    """Settings with both kinds of tokens; ``variables`` without their prefix."""
    given = {"DATABASE_URL": url, "USER_TOKENS": USER, "NODE_TOKENS": NODE, "URLS_ALLOW_PRIVATE": "true", **variables}
    return load_settings({f"DISPATCHER_{name}": value for name, value in given.items()})


def a_job(id: str, checkpoint: str | None = MODEL, **fields: Any) -> dict[str, Any]:
    document: dict[str, Any] = {"id": id, "params": {"prompt": "a cat", "steps": 20}, **fields}
    return document if checkpoint is None else {**document, "checkpoint": checkpoint}


def a_node(
    id: str = "n1",
    *,
    loaded: tuple[str, ...] = (),
    disk: tuple[str, ...] = (),
    free: int | None = None,
    wait: float | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """What a worker of ours says when it asks for work: checkpoints in memory and on disk, bytes free of 50 GB."""
    models = [{"kind": "checkpoint", "name": name, "tier": "vram", "size": 2_000_000_000} for name in loaded]
    models += [{"kind": "checkpoint", "name": name, "tier": "disk", "size": 2_000_000_000} for name in disk]
    asked = {"node": {"id": id, "instance": "1"}, "models": models, **fields}
    if free is not None:
        asked["disk"] = {"used": SPACE - free, "cap": SPACE, "free": free}
    return asked if wait is None else {**asked, "wait": wait}


def a_result(id: str, status: str = "succeeded", **fields: Any) -> dict[str, Any]:
    now = SystemClock().now().isoformat()
    worker = {"id": "n1", "version": "0"}
    return {"v": 1, "id": id, "status": status, "worker": worker, "created_at": now, "finished_at": now, **fields}


@dataclass
class Talk:
    """One dispatcher that serves, and a client of it. Requests are a user's unless they say otherwise."""

    dispatcher: Dispatcher
    port: int
    client: httpx.AsyncClient = field(repr=False)

    @property
    def view(self) -> View:
        return self.dispatcher.view

    @property
    def url(self) -> str:
        return f"http://[::1]:{self.port}"

    async def submit(self, *jobs: dict[str, Any]) -> httpx.Response:
        answer = await self.client.post("/jobs", json=list(jobs) if len(jobs) != 1 else jobs[0])
        answer.raise_for_status()
        return answer

    async def node(self, path: str, body: Any, headers: Mapping[str, str] = AS_NODE) -> httpx.Response:
        return await self.client.post(path, json=body, headers=dict(headers))

    async def ask(self, **node: Any) -> dict[str, Any]:
        """What a node gets that asks for work; see `a_node`."""
        answer = await self.node("/availability", a_node(**node))
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    async def beat(self, *running: dict[str, Any], node: str = "n1", **fields: Any) -> dict[str, Any]:
        body = {"node": {"id": node}, "running": [_running(one) for one in running], **fields}
        answer = await self.node("/heartbeat", body)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    async def end(self, given: Mapping[str, Any], status: str = "succeeded", **fields: Any) -> httpx.Response:
        """Bring a job that was given to its end."""
        result = a_result(given["id"], status, **fields)
        return await self.node(f"/jobs/{given['id']}/result", {"token": given["token"], "result": result})

    async def release(self, given: Mapping[str, Any], reason: str = "draining", **fields: Any) -> httpx.Response:
        return await self.node(f"/jobs/{given['id']}/release", {"token": given["token"], "reason": reason, **fields})

    async def job(self, id: str) -> dict[str, Any]:
        answer = await self.client.get(f"/jobs/{id}")
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    async def given(self, id: str = "j1", **node: Any) -> dict[str, Any]:
        """A job that was submitted, and given to a node that has its model in memory."""
        await self.submit(a_job(id))
        generation: dict[str, Any] = (await self.ask(loaded=(MODEL,), **node))["generation"]
        return generation


def _running(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": given["id"], "token": given["token"]}


@asynccontextmanager
async def dispatching(
    where: Path | str, *, clock: Clock | None = None, keys: str = "", pace: Pace = QUICK, **variables: str
) -> AsyncIterator[Talk]:
    """Serve over the database in a folder, or of a URL, for the time of a context."""
    url = where if isinstance(where, str) else await asyncio.to_thread(emptied_file, where)
    listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    settings = settings_of(url, **variables)
    async with (
        service.opened(settings, clock=clock, keys=keys, pace=pace, rng=random.Random(1)) as dispatcher,
        service.serving(dispatcher, "::1", 0, on_listening=listening.set_result) as broken,
    ):
        both: set[asyncio.Future[Any]] = {listening, broken}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if broken.done():
            broken.result()
        base = f"http://[::1]:{listening.result()}"
        async with httpx.AsyncClient(base_url=base, headers=AS_USER, trust_env=False, timeout=30) as client:
            yield Talk(dispatcher, listening.result(), client)
