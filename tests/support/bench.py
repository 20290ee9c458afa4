"""The real worker in this process: real loop, real sockets, a simulated server, a queue file, a receiver.

Only its waits are shorter than in production; what it does is what `sd-worker run` does.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Generic

import httpx
import pytest

from tests.support.receiver import Receiver
from tests.support.served import S, Server, served
from tests.support.waiting import wait_until
from worker import http, intake, log, recovery, settlement, watch
from worker.app import composed, opened
from worker.engines.base import ServerLog
from worker.engines.child import Foreign
from worker.errors import WorkerError
from worker.outfit import Opened
from worker.queues.base import Delivery, JobState
from worker.queues.sqlite import SqliteQueue
from worker.retry import Policy
from worker.settings import Settings, load_settings
from worker.storage import Storages
from worker.storage.base import Storage
from worker.storage.presigned import PresignedStorage
from worker.supervisor import ExitCode, Supervisor
from worker.webhooks import Sender

SECRET = "whsec_" + base64.b64encode(b"a key of the tests, 32 bytes now").decode()
SMALL = {"width": 64, "height": 64, "steps": 2}
PATIENCE_S = 20.0
SPED_UP = 100
"""By how much the worker's delays before a redelivery are shortened."""

_WAITS: tuple[tuple[Any, str, float], ...] = (
    (recovery, "POLL_FIRST_S", 0.02),
    (recovery, "POLL_MOST_S", 0.05),
    (recovery, "PAUSE_FIRST_S", 0.05),
    (recovery, "PAUSE_MOST_S", 0.1),
    (watch, "PROBE_FIRST_S", 0.05),
    (watch, "PROBE_MOST_S", 0.2),
    (intake, "BACK_OFF_FIRST_S", 0.05),
    (intake, "BACK_OFF_MOST_S", 0.2),
)


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Shorten the waits that no setting names."""
    for module, name, seconds in _WAITS:
        patch.setattr(module, name, seconds)
    for retrying in (Sender, PresignedStorage):
        defaults = retrying.__init__.__kwdefaults__ or {}
        policy: Policy = defaults["policy"]
        first, most = timedelta(milliseconds=50), timedelta(milliseconds=200)
        patch.setitem(defaults, "policy", dataclasses.replace(policy, first=first, most=most))
    delay = settlement.retry_delay

    def shorter(error: WorkerError, delivery: Delivery, rng: random.Random) -> timedelta:
        return delay(error, delivery, rng) / SPED_UP

    patch.setattr(settlement, "retry_delay", shorter)


def document(job_id: str, **fields: Any) -> bytes:
    """A job document; a small portable job where the fields name no other."""
    sources = {"params", "request", "workflow", "template"}
    made = {} if sources & set(fields) else {"params": {"prompt": f"a picture of {job_id}", **SMALL}}
    return json.dumps({"id": job_id, **made, **fields}).encode()


def params(prompt: str = "a cat", **fields: Any) -> dict[str, Any]:
    """Portable parameters of a small picture."""
    return {"prompt": prompt, **SMALL, **fields}


@dataclass
class RunningWorker(Generic[S]):
    """A worker at work and its surroundings."""

    sim: S
    receiver: Receiver
    settings: Settings
    parts: Opened
    supervisor: Supervisor
    process: asyncio.Task[ExitCode]
    client: httpx.AsyncClient

    @property
    def queue(self) -> SqliteQueue:
        assert isinstance(self.parts.queue, SqliteQueue)
        return self.parts.queue

    @property
    def outputs(self) -> Path:
        return self.settings.storage.directory

    async def probe(self, which: str) -> tuple[int, list[str]]:
        """Status and reasons that a probe is told."""
        response = await self.client.get(f"/{which}")
        return response.status_code, response.json()["reasons"]

    async def status(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.client.get("/v1/status")).json()
        return found

    async def ready(self) -> None:
        """Wait until it takes jobs."""

        async def is_ready() -> bool:
            return (await self.probe("ready"))[0] == 200

        await wait_until(is_ready, PATIENCE_S)

    async def unready(self, reason: str) -> None:
        """Wait until it says that it takes no jobs, and why."""

        async def is_unready() -> bool:
            return (await self.probe("ready")) == (503, [reason])

        await wait_until(is_unready, PATIENCE_S)

    async def submit(self, job_id: str, body: bytes | None = None, *, priority: int = 0, **fields: Any) -> None:
        body = document(job_id, **fields) if body is None else body
        assert await self.queue.submit(job_id, body, priority=priority)

    async def state(self, job_id: str) -> JobState:
        found = await self.queue.state(job_id)
        assert found is not None
        return found

    async def ended(self, job_id: str) -> JobState:
        """Wait until the job is done or dead."""

        async def is_over() -> bool:
            return (await self.state(job_id)).status in ("done", "dead")

        await wait_until(is_over, PATIENCE_S)
        return await self.state(job_id)

    async def attempted(self, job_id: str, code: str) -> None:
        """Wait until an attempt at the job has ended with this code."""

        async def has_ended() -> bool:
            return code in [attempt.code for attempt in (await self.state(job_id)).attempts]

        await wait_until(has_ended, PATIENCE_S)

    async def done(self, job_id: str, body: bytes | None = None, **fields: Any) -> JobState:
        """Submit a job and wait for its end."""
        await self.submit(job_id, body, **fields)
        return await self.ended(job_id)

    async def goes_on(self, after: str) -> None:
        """It is ready, and a good job that comes now succeeds and is announced."""
        await self.ready()
        job_id = f"good-after-{after}"
        state = await self.done(job_id)
        assert (state.status, state.code) == ("done", None)
        assert self.told(job_id) == ["job.succeeded"]

    def told(self, job_id: str) -> list[str]:
        """The events of this job that the operator's receiver took, in order."""
        return [one["type"] for one in self.receiver.documents if one["data"]["id"] == job_id]

    def files(self) -> dict[str, bytes]:
        """All that stands in the directory storage."""
        found = sorted(path for path in self.outputs.rglob("*") if path.is_file())
        return {path.relative_to(self.outputs).as_posix(): path.read_bytes() for path in found}


def ends(state: JobState) -> list[tuple[str | None, bool]]:
    """How the attempts ended, and whether each was charged."""
    return [(attempt.code, attempt.charged) for attempt in state.attempts]


def environment(root: Path, sim: Server, receiver: Receiver, changes: Mapping[str, str]) -> dict[str, str]:
    """What the worker is configured by."""
    return {
        "WORKER_ENGINE_URL": sim.url,
        "WORKER_HTTP_HOST": "::1",
        "WORKER_HTTP_PORT": "0",
        "WORKER_QUEUE": "sqlite",
        "WORKER_SQLITE_PATH": str(root / "queue.db"),
        "WORKER_STORAGE_DIRECTORY": str(root / "outputs"),
        "WORKER_WEBHOOK_URL": receiver.url("/hook"),
        "WORKER_WEBHOOK_SECRET": SECRET,
        "WORKER_NODE_ID": "w1",
        "WORKER_DRAIN_TIMEOUT": "0",
        **changes,
    }


@asynccontextmanager
async def running_worker(
    root: Path,
    dialect: str = "sdnext",
    knobs: Any = None,
    *,
    storage: Storage | None = None,
    queue: SqliteQueue | None = None,
    auth: str | None = None,
    server: Mapping[str, Any] | None = None,
    server_log: ServerLog | None = None,
    ready: bool = True,
    quiet_s: float = 1.0,
    changed: Callable[[pytest.MonkeyPatch], None] = lambda patch: None,
    **variables: str,
) -> AsyncIterator[RunningWorker[Any]]:
    """A worker that is READY, if asked to; ``storage`` and ``queue`` stand in for those of the settings.

    ``dialect`` is one of the sdapi family, "comfyui", "fooocus" or "fooocus-0.4.1.1", with that simulator's ``knobs``.
    ``auth`` is "user:password" that an sdapi server asks for; ``server`` are further arguments of the simulator;
    ``server_log`` takes the place of what a Fooocus-API prints; ``changed`` may patch before anything is opened.
    ``quiet_s``: how long a server may hang; where none does, a loaded machine should have more of it.
    """
    async with AsyncExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        hurry(patch)
        patch.setattr(log, "_identity", {})
        changed(patch)
        options = {**({"auth": auth} if auth is not None else {}), **(server or {})}
        machine = await stack.enter_async_context(served(dialect, knobs, log=server_log, **options))
        receiver = await stack.enter_async_context(Receiver(secret=SECRET))
        settings = load_settings(environment(root, machine.sim, receiver, variables))
        parts = await stack.enter_async_context(opened(settings, {"queue", "storage"}))
        engine = machine.engine(settings, quiet_s=quiet_s)
        stack.push_async_callback(engine.aclose)
        parts = dataclasses.replace(parts, engine=engine, process=Foreign(settings.engine.address))
        if storage is not None:
            parts = dataclasses.replace(parts, storage=Storages(storage, ()))
            stack.push_async_callback(storage.aclose)
        if queue is not None:
            parts = dataclasses.replace(parts, queue=queue)
            stack.push_async_callback(queue.aclose)
        listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        supervisor = await composed(settings, parts, stack, _never, listening.set_result)
        process = asyncio.create_task(supervisor.run(), name="worker")
        stack.push_async_callback(_stopped, supervisor, process)
        client = await stack.enter_async_context(http.client(loopback=True, base_url=f"http://[::1]:{await listening}"))
        worker = RunningWorker(machine.sim, receiver, settings, parts, supervisor, process, client)
        if ready:
            await worker.ready()
        yield worker


def _never() -> None:
    raise AssertionError("nobody asked it to stop at once")


async def _stopped(supervisor: Supervisor, process: asyncio.Task[ExitCode]) -> None:
    if not process.done():
        supervisor.stop()
    await asyncio.wait({process})
