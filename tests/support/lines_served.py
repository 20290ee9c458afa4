"""A dispatcher in a process of its own, as the queue of a workshop."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Self

from tests.support.databases import emptied_file
from tests.support.dispatching import NODE, USER
from tests.support.lines_base import MOST, VISIBILITY_S, Telling, away
from worker.clock import SystemClock
from worker.queues.availability import AvailabilityProducer
from worker.queues.base import JobState
from worker.simulators import free_port

ROOT = Path(__file__).parents[2]


class Served(Telling):
    """Its workers have nodes' tokens. ``database``: the URL of one, else it is a file in the folder."""

    def __init__(self, folder: Path, database: str | None) -> None:
        self._folder, self._database = folder, database
        self._port = free_port()
        self._process: Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self.url = f"http://[::1]:{self._port}"
        self.producer = AvailabilityProducer(self.url, SystemClock(), token=USER)

    async def __aenter__(self) -> Self:
        if self._database is None:
            self._database = await asyncio.to_thread(emptied_file, self._folder)
        await self._start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.producer.aclose()
        await self._kill()

    def variables(self, worker: str) -> dict[str, str]:
        return {
            "WORKER_QUEUE": "availability",
            "WORKER_AVAILABILITY_URL": self.url,
            "WORKER_AVAILABILITY_TOKEN": NODE,
        }

    async def states(self, job_ids: Iterable[str], objects: Mapping[str, bytes]) -> list[JobState]:
        """One by one, since the list has no results; what is there beside them comes from the list."""
        wanted = set(job_ids)
        others = [one for one in await self.producer.jobs(limit=1000) if one.id not in wanted]
        found = [await self.producer.state(job_id) for job_id in sorted(wanted)]
        return [*(state for state in found if state is not None), *others]

    def quiet(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def restart(self) -> None:
        """It is killed."""
        await self._kill()
        await away()
        await self._start()

    async def _start(self) -> None:
        """Returns once it listens."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.hasty_dispatcher", "serve"),
            env=self._environment(),
            cwd=ROOT,
            stdout=PIPE,
            stderr=STDOUT,
        )
        assert self._process.stdout is not None
        told = b""
        async for line in self._process.stdout:
            told += line
            if b'"listening"' in line:
                self._reading = asyncio.create_task(_drained(self._process.stdout), name="dispatcher-log")
                return
        raise RuntimeError(f"the dispatcher ended before it served:\n{told.decode()}")

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()
        if self._reading is not None:
            await self._reading

    def _environment(self) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        given = {
            "DATABASE_URL": str(self._database),
            "HOST": "::1",
            "PORT": str(self._port),
            "USER_TOKENS": USER,
            "NODE_TOKENS": NODE,
            "URLS_ALLOW_PRIVATE": "true",
            "LOG_FORMAT": "json",
            "LEASE": f"{VISIBILITY_S}s",
            "MAX_DELIVERIES": str(MOST),
            "MAX_STEPS": "100000",
        }
        return inherited | {f"DISPATCHER_{name}": value for name, value in given.items()}


async def _drained(stream: asyncio.StreamReader) -> None:
    async for _ in stream:
        pass
