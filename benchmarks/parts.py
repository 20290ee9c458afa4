"""Real parts around a worker that is measured: a simulator, a slow store, a slow receiver, the worker itself."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from worker.settings.source import surroundings
from worker.simulators import free_port
from worker.tasks import cancel_all

READY_WITHIN_S = 60.0


async def answers(url: str, *, within_s: float = READY_WITHIN_S) -> None:
    """Wait until a GET of the URL is a success."""
    async with httpx.AsyncClient(trust_env=False, timeout=2) as client, asyncio.timeout(within_s):
        while True:
            try:
                if (await client.get(url)).is_success:
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.02)


async def got(url: str) -> Any:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        return (await client.get(url)).raise_for_status().json()


@asynccontextmanager
async def process(
    *arguments: str, environment: Mapping[str, str], program: str = sys.executable
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python process, or one of another program, ended by SIGTERM with the block."""
    running = await asyncio.create_subprocess_exec(
        program, *arguments, env=dict(environment), stdout=asyncio.subprocess.DEVNULL, stderr=None
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.terminate()
        await running.wait()


@asynccontextmanager
async def simulator(*, step_s: float) -> AsyncIterator[str]:
    """The URL of a simulated SD.Next in a process of its own."""
    port = free_port()
    url = f"http://[::1]:{port}"
    arguments = ("--port", str(port), "--step-seconds", str(step_s), "--load-seconds", "0.1")
    async with process("-m", "worker.simulators", "sdnext", *arguments, environment=surroundings()):
        await answers(f"{url}/simulator/stats")
        yield url


@dataclass(frozen=True, slots=True)
class Worker:
    process: asyncio.subprocess.Process
    url: str


@asynccontextmanager
async def worker(environment: Mapping[str, str], binary: str | None = None) -> AsyncIterator[Worker]:
    """`sd-worker run` from source, or from this binary; not waited for."""
    port = free_port()
    base = surroundings() | {"WORKER_HTTP_PORT": str(port), "WORKER_LOG_LEVEL": "error", "WORKER_LOG_FORMAT": "json"}
    command = (sys.executable, "-m", "worker") if binary is None else (binary,)
    async with process(*command[1:], "run", environment=base | dict(environment), program=command[0]) as running:
        yield Worker(running, f"http://[::1]:{port}")


@asynccontextmanager
async def delayed(upstream: str, latency_s: float) -> AsyncIterator[str]:
    """A way to an HTTP server on which the answer to each request comes later by the latency."""
    host, port = httpx.URL(upstream).host, httpx.URL(upstream).port
    serving: set[asyncio.Task[None]] = set()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        far_reader, far_writer = await asyncio.open_connection(host, port)
        due = 0.0
        answered = True

        async def requests() -> None:
            nonlocal due, answered
            while data := await reader.read(1 << 16):
                if answered:
                    due, answered = loop.time() + latency_s, False
                far_writer.write(data)
                await far_writer.drain()
            far_writer.close()

        async def responses() -> None:
            nonlocal answered
            while data := await far_reader.read(1 << 16):
                if not data.startswith(b"HTTP/1.1 100 "):
                    await asyncio.sleep(max(0.0, due - loop.time()))
                    answered = True
                writer.write(data)
                await writer.drain()
            writer.close()

        await asyncio.gather(requests(), responses(), return_exceptions=True)
        writer.close()
        far_writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(connection(reader, writer), name="delayed-connection")
        serving.add(task)
        task.add_done_callback(serving.discard)

    async with _listening(accept) as url:
        yield url
        await cancel_all(set(serving))


@asynccontextmanager
async def receiver(latency_s: float) -> AsyncIterator[tuple[str, list[str]]]:
    """A webhook receiver that takes its time: its URL, and the ids of jobs that it has taken."""
    taken: list[str] = []
    serving: set[asyncio.Task[None]] = set()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = int(head.partition("content-length:")[2].partition("\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                await asyncio.sleep(latency_s)
                taken.append(body["data"]["id"])
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(connection(reader, writer), name="receiver-connection")
        serving.add(task)
        task.add_done_callback(serving.discard)

    async with _listening(accept) as url:
        yield f"{url}/hook", taken
        await cancel_all(set(serving))


@asynccontextmanager
async def _listening(accept: Any) -> AsyncIterator[str]:
    server = await asyncio.start_server(accept, "::1", 0)
    try:
        yield f"http://[::1]:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def resident_mb(pid: int) -> float:
    """VmRSS, in megabytes of 10^6 bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024 / 1e6


def cpu_s(pid: int) -> float:
    """User and system time of the process so far."""
    import os

    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
