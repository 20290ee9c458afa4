"""The dispatcher's process, and a user's view of it."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from demo.plan import Wanted
from worker import http
from worker.clock import SystemClock
from worker.errors import QueueUnavailable
from worker.queues.availability import AvailabilityProducer
from worker.queues.base import JobState
from worker.settings.source import surroundings

START_S = 60.0
LOOK_S = 0.05


class NotServing(Exception):
    """The dispatcher's process ended, or never listened; its log says why."""


class Service:
    """`sd-dispatcher serve`, and what one can ask it with a user's token."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, user_token: str, node_token: str) -> None:
        self.url = url
        self.node_token = node_token
        self._process = process
        self._producer = AvailabilityProducer(url, SystemClock(), token=user_token)
        headers = {"authorization": f"Bearer {user_token}"}
        self._client = http.client(timeout=timedelta(seconds=30), loopback=True, base_url=url, headers=headers)

    @classmethod
    @asynccontextmanager
    async def running(cls, log: Path, variables: Mapping[str, str]) -> AsyncIterator[Service]:
        """A dispatcher on a free port of ``[::1]``, ended with the block. Raises `NotServing`."""
        user_token, node_token = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        kept = {name: value for name, value in surroundings().items() if not name.startswith("DISPATCHER_")}
        environment = kept | {
            "DISPATCHER_HOST": "::1",
            "DISPATCHER_PORT": "0",
            "DISPATCHER_USER_TOKENS": user_token,
            "DISPATCHER_NODE_TOKENS": node_token,
            "DISPATCHER_LOG_FORMAT": "json",
            **variables,
        }
        with log.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "dispatcher", "serve", env=environment, stdout=sink, stderr=sink
            )
        try:
            service = cls(process, f"http://[::1]:{await _port(process, log)}", user_token, node_token)
            try:
                yield service
            finally:
                await service.aclose()
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    @property
    def ended(self) -> bool:
        return self._process.returncode is not None

    async def put_models(self, catalogue: Sequence[Mapping[str, Any]]) -> None:
        await self._call("PUT", "/models", list(catalogue))

    async def submit(self, jobs: Sequence[Wanted]) -> None:
        await self._call("POST", "/jobs", [job.document for job in jobs])

    async def nodes(self) -> set[str]:
        """Those that were heard of lately."""
        fleet = await self._call("GET", "/fleet")
        return {node["id"] for node in fleet["nodes"] if node["alive"]}

    async def leased(self) -> dict[str, set[str]]:
        """The ids of the jobs that each node holds."""
        found: dict[str, set[str]] = {}
        for job in (await self._call("GET", "/jobs?status=leased&limit=1000"))["jobs"]:
            found.setdefault(job["node"], set()).add(job["id"])
        return found

    async def state(self, job_id: str) -> JobState | None:
        return await self._producer.state(job_id)

    async def stopped(self) -> int:
        """End it as a service manager does; its exit code."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        return await self._process.wait()

    async def aclose(self) -> None:
        await self._client.aclose()
        await self._producer.aclose()

    async def _call(self, method: str, path: str, document: Any = None) -> Any:
        with http.translating(QueueUnavailable, url=self.url + path):
            answer = await self._client.request(method, path, json=document)
        if not answer.is_success:
            raise QueueUnavailable(f"{path}: answered {answer.status_code}: {answer.text[:500]}")
        return answer.json() if answer.content else None


async def _port(process: asyncio.subprocess.Process, log: Path) -> int:
    """Where it listens, as its log says."""
    try:
        async with asyncio.timeout(START_S):
            while process.returncode is None:
                if (port := _told(log)) is not None:
                    return port
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        pass
    raise NotServing(f"the dispatcher does not serve; {log} says why")


def _told(log: Path) -> int | None:
    """The port in the event `listening`, once it is there."""
    for line in log.read_text().splitlines():
        with suppress(ValueError):
            if (said := json.loads(line)).get("event") == "listening":
                return int(said["port"])
    return None
