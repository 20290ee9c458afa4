"""Everything around a worker on real sockets, and workers as real processes that may be killed and frozen."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from tests.support.failing_worker import HASTY, Failure
from tests.support.ledger import Ledger, Made, Told
from tests.support.lines import Kind, lined
from tests.support.lines_base import Line
from tests.support.receiver import Answer, Receiver, Request
from tests.support.s3 import ACCESS_KEY, REGION, SECRET_KEY, Bucket, made_bucket, running_moto, running_rclone
from tests.support.waiting import wait_until
from worker.queues.base import Producer
from worker.simulators import Knobs, Simulator, running

ROOT = Path(__file__).parents[2]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
LONGEST_S = 90.0
Store = Literal["rclone", "moto"]
"""rclone ignores ``If-None-Match``, moto honours it."""
MODEL, OTHER_MODEL = "dreamshaper_8.safetensors", "sd_xl_base_1.0.safetensors"


class Hook(Receiver):
    """The webhook receiver of these tests: verifies, and remembers when it was told what."""

    def __init__(self) -> None:
        super().__init__(secret=SECRET)
        self.told: list[Told] = []

    def answer(self, request: Request) -> Answer:
        answer = super().answer(request)
        if answer.status == 200 and request.method == "POST":
            document = json.loads(request.body)
            told = Told(time.time(), request.headers["webhook-id"], document["type"], document["data"])
            self.told.append(told)
        return answer

    def ended(self) -> set[str]:
        """Ids of the jobs that were told to have ended."""
        return {one.data["id"] for one in self.told}


@dataclass(slots=True)
class Life:
    """One process of a worker, from its start to its end."""

    process: asyncio.subprocess.Process
    log: Path

    @property
    def over(self) -> bool:
        return self.process.returncode is not None

    async def died(self) -> int:
        """Its exit code, once it has ended; it is not waited for for ever."""
        await wait_until(lambda: self.over, LONGEST_S, lambda: f"it lives on\n{self.tail()}")
        return await self.process.wait()

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        """Ask it to drain; its exit code."""
        self.process.terminate()
        return await self.died()

    async def held(self) -> None:
        """Wait until it stands at the failpoint where it is to be held."""
        await wait_until(lambda: self.over or self.events("failpoint_held"), timeout=30)
        assert not self.over, f"it ended with {self.process.returncode}\n{self.tail()}"

    def stands_still(self) -> bool:
        """Whether a signal has stopped it."""
        return os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None

    def thaw(self) -> None:
        """Let it go on, from a failpoint too."""
        self.process.send_signal(signal.SIGCONT)
        assert self.process.stdin is not None
        self.process.stdin.write(b".")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines of that event, whole ones only."""
        lines = self.log.read_text().rpartition("\n")[0].splitlines()
        documents = [json.loads(line) for line in lines if line.startswith("{")]
        return [one for one in documents if one.get("event") == name]

    def tail(self) -> str:
        return self.log.read_text()[-4000:]


@asynccontextmanager
async def living(*module: str, environment: Mapping[str, str], log: Path) -> AsyncIterator[Life]:
    """A process of ours; what is left of it at the end of the block is killed."""
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *module), env=environment, cwd=ROOT, stdin=PIPE, stdout=sink, stderr=sink
        )
    life = Life(process, log)
    try:
        yield life
    finally:
        if not life.over:
            await life.kill()


@dataclass
class Workshop:
    """A queue, a store, an image server and a receiver; what they saw is judged by `ledger`."""

    folder: Path
    simulators: list[Simulator]
    bucket: Bucket
    stored: Path
    receiver: Hook
    line: Line
    pictures: int = 1
    wanted: dict[str, str | None] = field(default_factory=dict)
    lives: int = 0
    kills: int = 0
    held: list[int] = field(default_factory=list)
    """How many jobs each killed worker held at its death, where that was looked at."""

    @property
    def producer(self) -> Producer:
        return self.line.producer

    async def submit(self, job_id: str, *, code: str | None = None, **fields: Any) -> None:
        """A small job whose prompt is its id; ``code`` is how it must end, None: well."""
        params = {"prompt": job_id, "width": 64, "height": 64, "steps": 4, "batch_size": self.pictures}
        self.wanted[job_id] = code
        await self.producer.submit(job_id, json.dumps({"v": 1, "id": job_id, "params": params | fields}).encode())

    async def submit_many(self, count: int, **fields: Any) -> None:
        for number in range(len(self.wanted), len(self.wanted) + count):
            await self.submit(f"job-{number:04d}", **fields)

    def environment(self, worker: str, **changes: str) -> dict[str, str]:
        """What configures a worker's process; nothing else does."""
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        return {
            **inherited,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "WORKER_ENGINE": "sdnext",
            "WORKER_ENGINE_URL": self.simulators[0].url,
            "WORKER_HTTP_PORT": "0",
            **self.line.variables(worker),
            "WORKER_S3_BUCKET": self.bucket.name,
            "WORKER_S3_ENDPOINT_URL": self.bucket.endpoint_url,
            "WORKER_S3_REGION": REGION,
            "WORKER_WEBHOOK_URL": self.receiver.url("/hook"),
            "WORKER_WEBHOOK_SECRET": SECRET,
            "WORKER_WARMUP": "none",
            "WORKER_NODE_ID": worker,
            "WORKER_LOG_FORMAT": "json",
            "WORKER_STRICT": "true",
            **changes,
        }

    @asynccontextmanager
    async def worker(self, name: str, *failures: Failure, hasty: bool = False, **changes: str) -> AsyncIterator[Life]:
        """A worker at work, failing as told; what is left of it at the end of the block is killed."""
        self.lives += 1
        log = self.folder / f"{name}-{self.lives}.log"
        said = (*([HASTY] if hasty else []), *map(str, failures))
        module = ("tests.support.failing_worker", *said) if said else ("worker",)
        async with living(*module, "run", environment=self.environment(name, **changes), log=log) as life:
            yield life

    async def ended(self, *lives: Life, timeout: float = 60) -> None:
        """Wait until every job is over; the lives must last so long."""
        open_jobs = list(self.wanted)

        async def over() -> bool:
            for life in lives:
                assert not life.over, f"it ended with {life.process.returncode}\n{life.tail()}"
            if len(self.receiver.ended()) < len(self.wanted):
                return False
            while open_jobs:
                if not await self.line.is_over(open_jobs[-1]):
                    return False
                open_jobs.pop()
            return True

        try:
            await wait_until(over, timeout)
        except TimeoutError:
            silent = sorted(self.wanted.keys() - self.receiver.ended())
            known = await self.line.states(open_jobs, {})
            states = [f"{one.id} {one.status} {one.code}" for one in known if one.id in open_jobs]
            raise AssertionError(f"open after {timeout} s: {states}; nothing told of {silent}") from None

    async def freeze(self, life: Life) -> None:
        """Stop a process as it is."""
        async with self.line.quiet():
            life.process.send_signal(signal.SIGSTOP)
            await wait_until(life.stands_still)

    async def finished(self, name: str = "w1", *, hasty: bool = False, **changes: str) -> None:
        """Let a worker that nothing befalls do what is left, and drain; its coverage is measured where ours is."""
        measured = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_PROCESS_")}
        async with self.worker(name, hasty=hasty, **measured, **changes) as life:
            await self.ended(life)
            await wait_until(lambda: life.over or life.events("listening"), timeout=60)
            assert await life.stop() == 0, life.tail()

    async def ledger(self, *, one_result: bool = True) -> Ledger:
        """Everything as it stands now."""
        times = await asyncio.to_thread(all_keys, self.bucket)
        read = await asyncio.to_thread(lambda: {key: self.bucket.whole(key) for key in times})
        objects = {key: body for key, body in read.items() if body is not None}
        return Ledger(
            wanted=dict(self.wanted),
            states=await self.line.states(self.wanted, objects),
            objects=objects,
            stood_since={key: self._stored_at(key, times[key]) for key in objects},
            told=self.receiver.told,
            made=[Made(one.started, one.prompt) for sim in self.simulators for one in sim.stats.generations],
            refused=self.receiver.refused,
            pictures=self.pictures,
            one_result=one_result,
        )

    def _stored_at(self, key: str, told: datetime) -> float:
        """When it was stored, in Unix seconds: of what S3 tells in whole seconds, the end of that second."""
        file = self.stored / key
        return file.stat().st_mtime if file.exists() else told.timestamp() + 1

    def generations(self) -> int:
        """How many the first server has begun so far, warm-ups included."""
        return len(self.simulators[0].stats.generations)

    async def breaches(self) -> list[str]:
        return (await self.ledger()).breaches()


def all_keys(bucket: Bucket) -> dict[str, datetime]:
    """Every object, and since when it is so."""
    pages = bucket.client().get_paginator("list_objects_v2").paginate(Bucket=bucket.name)
    return {item["Key"]: item["LastModified"] for page in pages for item in page.get("Contents", [])}


@contextmanager
def _store(kind: Store, root: Path) -> Iterator[str]:
    with running_rclone(root) if kind == "rclone" else running_moto() as url:
        yield url


@asynccontextmanager
async def workshop(
    folder: Path,
    knobs: Knobs | None = None,
    *,
    models: tuple[str, ...] = (MODEL,),
    store: Store = "rclone",
    queue: Kind = "sqlite",
    database: str | None = None,
) -> AsyncIterator[Workshop]:
    """One of its own for a test. Each of ``models`` gets an image server; another model draws other pictures."""
    knobs = knobs or Knobs(step_seconds=0.005, load_seconds=0.0)
    root = folder / "store"
    root.mkdir()
    async with AsyncExitStack() as stack:
        simulators = [await stack.enter_async_context(running("sdnext", knobs, models=(name,))) for name in models]
        bucket = made_bucket(stack.enter_context(_store(store, root)))
        receiver = await stack.enter_async_context(Hook())
        line = await stack.enter_async_context(lined(queue, folder, database))
        yield Workshop(folder, simulators, bucket, root / bucket.name, receiver, line)
