"""A worker that owns its image server: both real processes, told from outside what befalls them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import httpx

from tests.support.ledger import Ledger
from tests.support.lines_base import VISIBILITY_S
from tests.support.workshop import ROOT, SECRET, Hook, Life
from worker import http
from worker.clock import SystemClock
from worker.engines.child import processes
from worker.engines.child.marker import VARIABLE
from worker.errors import DownloadFailed
from worker.metrics import ENGINE_RESTARTS
from worker.queues.base import JobState
from worker.queues.sqlite.driver import SqliteProducer
from worker.simulators import free_port
from worker.simulators.comfyui import write_checkpoint
from worker.tasks import cancel_all

Kind = Literal["sdnext", "a1111", "comfyui", "fooocus"]
KINDS: tuple[Kind, ...] = ("sdnext", "a1111", "comfyui", "fooocus")
PATIENCE_S = 60.0
LOOK_S = 0.05
STEPS = 30
"""Of a job that a kill is to hit; Fooocus always takes its own number."""

_SIMULATOR = 'exec "$0" -m worker.simulators "$@" --knobs "$(cat "$KNOBS")"'
"""What a server is at its start stands in a file, so that the next one may be another."""


@dataclass
class Supervised:
    """A queue file, a folder for images, a receiver, and a port for the server that workers start."""

    kind: Kind
    folder: Path
    port: int
    receiver: Hook
    producer: SqliteProducer
    client: httpx.AsyncClient
    wanted: dict[str, str | None] = field(default_factory=dict)
    lives: int = 0
    within: tuple[str, ...] = ()
    """A command that runs the worker's."""
    module: str = "worker"

    @property
    def url(self) -> str:
        return f"http://[::1]:{self.port}"

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs"

    def at_start(self, **knobs: Any) -> None:
        """What every server that is started from now on is like."""
        quick = {"step_seconds": 0.005, "load_seconds": 0.0}
        (self.folder / "knobs.json").write_text(json.dumps(quick | knobs))

    def simulator(self, *options: str) -> tuple[str, ...]:
        """The command of this kind's simulated server."""
        place = {"comfyui": ("--base-dir", str(self.folder / "comfyui")), "fooocus": ("--outputs", str(self.folder))}
        return (
            *("env", f"KNOBS={self.folder / 'knobs.json'}", "sh", "-c", _SIMULATOR, sys.executable),
            *(self.kind, "--port", str(self.port), *place.get(self.kind, ()), *options),
        )

    def environment(self, **changes: str) -> dict[str, str]:
        """What configures the worker; its server gets what is left of it."""
        measured = [name for name in os.environ if name.startswith("COVERAGE_PROCESS_")]
        kept = ["PATH", "HOME", "LANG", "TMPDIR", *measured]
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "WORKER_ENGINE": self.kind,
            "WORKER_ENGINE_URL": self.url,
            "WORKER_HTTP_PORT": "0",
            "WORKER_QUEUE_VISIBILITY": f"{VISIBILITY_S}s",
            "WORKER_QUEUE": "sqlite",
            "WORKER_SQLITE_PATH": str(self.folder / "queue.db"),
            "WORKER_STORAGE_DIRECTORY": str(self.outputs),
            "WORKER_WEBHOOK_URL": self.receiver.url("/hook"),
            "WORKER_WEBHOOK_SECRET": SECRET,
            "WORKER_NODE_ID": "w1",
            "WORKER_LOG_FORMAT": "json",
            "WORKER_STRICT": "true",
            **changes,
        }

    @asynccontextmanager
    async def worker(self, *command: str, **changes: str) -> AsyncIterator[SupervisingLife]:
        """`sd-worker run -- COMMAND`, by default with a simulator; killed at the end of the block, and all its own."""
        self.lives += 1
        log = self.folder / f"worker-{self.lives}.log"
        command = command or self.simulator()
        with log.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                *(*self.within, sys.executable, "-m", self.module, "run", "--", *command),
                env=self.environment(**changes),
                cwd=ROOT,
                stdin=PIPE,
                stdout=sink,
                stderr=sink,
            )
        life = SupervisingLife(process, log, self)
        try:
            yield life
        finally:
            if not life.over:
                await life.kill()
            for pid in self.left():
                os.kill(pid, signal.SIGKILL)

    async def ended_by_itself(self, *command: str, **changes: str) -> tuple[int, SupervisingLife]:
        """Exit code of a worker that cannot run, or not for long."""
        async with self.worker(*command, **changes) as life, asyncio.timeout(PATIENCE_S):
            return await life.died(), life

    async def submit(self, job_id: str, *, code: str | None = None, steps: int = 4, **params: Any) -> None:
        """A small job whose prompt is its id; ``code`` is how it must end, None: well."""
        side = 512 if self.kind == "fooocus" else 64
        params = {"prompt": job_id, "width": side, "height": side, "steps": steps} | params
        self.wanted[job_id] = code
        await self.producer.submit(job_id, json.dumps({"v": 1, "id": job_id, "params": params}).encode())

    async def submit_many(self, count: int, **fields: Any) -> None:
        for number in range(count):
            await self.submit(f"job-{number:03d}", **fields)

    async def turn(self, **knobs: Any) -> None:
        """Turn knobs of the server that runs now; ``arm`` adds faults."""
        (await self.client.post("/simulator/knobs", json=knobs)).raise_for_status()

    async def stats(self) -> dict[str, Any]:
        """What the server that runs now has seen; empty when there is none."""
        try:
            with http.translating(DownloadFailed, url=self.url):
                found: dict[str, Any] = (await self.client.get("/simulator/stats")).json()
        except DownloadFailed:
            return {}
        return found

    async def state(self, job_id: str) -> JobState:
        found = await self.producer.state(job_id)
        assert found is not None
        return found

    async def codes(self, job_id: str) -> list[tuple[str | None, bool]]:
        """How each attempt ended, and whether it was charged."""
        return [(one.code, one.charged) for one in (await self.state(job_id)).attempts]

    def left(self) -> list[int]:
        """All that runs of servers started for this address."""
        seen = [one.pid for one in processes.table().values() if one.alive]
        marks = {pid: processes.variable_of(pid, VARIABLE) or "" for pid in seen}
        return [pid for pid, mark in marks.items() if mark.startswith(f"{self.url} ")]

    async def port_open(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("::1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def ledger(self) -> Ledger:
        """Everything as it stands now; what the servers saw is gone with them."""
        files = [path for path in self.outputs.rglob("*") if path.is_file()]
        keys = {path.relative_to(self.outputs).as_posix(): path for path in files}
        return Ledger(
            wanted=dict(self.wanted),
            states=await self.producer.jobs(limit=100_000),
            objects={key: path.read_bytes() for key, path in keys.items()},
            stood_since={key: path.stat().st_mtime for key, path in keys.items()},
            told=self.receiver.told,
            made=(),
            refused=self.receiver.refused,
        )


@dataclass(slots=True)
class SupervisingLife(Life):
    """One process of a worker, and the servers that it starts."""

    around: Supervised

    @property
    def number(self) -> int:
        """The worker's own process number, also where a command runs it."""
        own = self.process.pid
        return (
            next((one.pid for one in processes.table().values() if one.parent == own), own)
            if self.around.within
            else own
        )

    def zombies(self) -> list[int]:
        """Its children that ended and were not buried."""
        return [one.pid for one in processes.table().values() if one.parent == self.number and not one.alive]

    def memory(self) -> int:
        """Bytes that its servers hold at the moment."""
        return processes.memory_of(self.servers) or 0

    @property
    def servers(self) -> list[int]:
        """Process numbers of the servers so far."""
        return [int(line["pid"]) for line in self.events("engine_process_started")]

    def has_other_server(self, than: int) -> bool:
        return self.servers[-1] != than

    async def port(self) -> int:
        """Where it answers, as it says itself."""
        await self.until(lambda: self.events("listening"))
        return int(self.events("listening")[0]["port"])

    async def until(self, check: Callable[[], object | Awaitable[object]], seconds: float = PATIENCE_S) -> None:
        """Wait until the check is true; it must last so long. Looks seldom: what befalls the servers needs the CPU."""
        ended = asyncio.create_task(self.died(), name="worker-ended")
        try:
            async with asyncio.timeout(seconds):
                while not await _answer(check()):
                    assert not self.over, f"it ended with {self.process.returncode}\n{self.tail()}"
                    await asyncio.wait({ended}, timeout=LOOK_S)
        except TimeoutError:
            raise AssertionError(f"not so after {seconds} s\n{self.tail()}") from None
        finally:
            await cancel_all({ended})

    async def get(self, path: str) -> httpx.Response:
        async with http.client(loopback=True, base_url=f"http://[::1]:{await self.port()}") as client:
            return await client.get(path)

    async def ready(self) -> None:
        async def is_ready() -> bool:
            return (await self.get("/ready")).status_code == 200

        await self.until(is_ready)

    async def restarts(self) -> dict[str, int]:
        """How often the server was started again, by reason, as `/metrics` says."""
        text = (await self.get("/metrics")).text
        found = re.findall(rf'^{ENGINE_RESTARTS}{{reason="(\w+)"}} ([0-9.e+]+)$', text, re.MULTILINE)
        return {reason: int(float(count)) for reason, count in found}

    async def sampling(self) -> None:
        """Wait until the server that runs now generates a picture of a job."""

        async def at_work() -> bool:
            return bool(_running(await self.around.stats()) & self.around.wanted.keys())

        await self.until(at_work)

    async def jobs_ended(self, job_ids: Iterable[str] | None = None, seconds: float = PATIENCE_S) -> None:
        """Wait until the jobs are over, and those who asked for them know."""
        open_jobs = set(self.around.wanted if job_ids is None else job_ids)

        async def over() -> bool:
            ended = open_jobs & self.around.receiver.ended()
            open_jobs.difference_update([one for one in ended if (await self.around.state(one)).status in _OVER])
            return not open_jobs

        await self.until(over, seconds)

    async def drained(self) -> None:
        """Ask it to stop; it ends well and leaves nothing: no process of its server, no open port."""
        servers = self.servers
        os.kill(self.number, signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            assert await self.died() == 0, self.tail()
        assert self.around.left() == []
        assert [one for one in processes.table().values() if one.group in servers or one.session in servers] == []
        assert not await self.around.port_open()


_OVER = ("done", "dead")


def _running(stats: dict[str, Any]) -> set[str]:
    """Prompts of what a server generates at the moment, by its statistics."""
    if "runs" in stats:
        open_runs = {run["prompt_id"] for run in stats["runs"] if run["finished"] is None}
        return {one["positive"] for one in stats["samplings"] if one["prompt_id"] in open_runs}
    return {one["prompt"] for one in stats.get("generations", []) if one["finished"] is None}


async def _answer(found: object | Awaitable[object]) -> object:
    return await found if isinstance(found, Awaitable) else found


@asynccontextmanager
async def supervised(kind: Kind, folder: Path, **knobs: Any) -> AsyncIterator[Supervised]:
    """Surroundings of their own for a test; ``knobs`` are those of the servers that are started."""
    write_checkpoint(folder / "comfyui" / "models" / "checkpoints" / "dreamshaper_8.safetensors", "sd15")
    port = free_port(2)
    async with AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(Hook())
        producer = SqliteProducer(folder / "queue.db", SystemClock())
        stack.push_async_callback(producer.aclose)
        client = await stack.enter_async_context(http.client(loopback=True, base_url=f"http://[::1]:{port}"))
        around = Supervised(kind, folder, port, receiver, producer, client)
        around.at_start(**knobs)
        yield around


async def as_first_process() -> tuple[str, ...]:
    """A command that runs another as the first process of a container; none where the kernel does not let us."""
    command = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    try:
        tried = await asyncio.create_subprocess_exec(*command, "true", stdout=DEVNULL, stderr=DEVNULL)
    except FileNotFoundError:
        return ()
    return command if await tried.wait() == 0 else ()


async def kill_at_work(life: SupervisingLife, rng: random.Random, kills: int, within_s: float) -> Counter[int]:
    """SIGKILL each server so often at a random instant of a generation; how many each got."""
    killed: Counter[int] = Counter()
    for _ in range(kills):
        await life.sampling()
        server, ends = life.servers[-1], len(life.events("engine_process_ended"))
        asyncio.get_running_loop().call_later(rng.uniform(0, within_s), os.kill, server, signal.SIGKILL)
        await life.until(partial(lambda ends: len(life.events("engine_process_ended")) > ends, ends))
        killed[server] += 1
    return killed
