"""`sd-worker demo`: the whole main job on one machine, with embedded parts.

A simulated image server and a webhook receiver run in this process; the worker runs as it does in production, as
a process of its own, configured by environment variables. What is checked at the end is what a customer sees.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from worker import http
from worker.cli import FAILED, OK
from worker.cli.demo_parts import (
    Receiver,
    documents,
    judged,
    new_secret,
    worker_environment,
)
from worker.cli.output import complain, print_rows
from worker.clock import CorrectedClock, SystemClock
from worker.errors import ConfigError, DownloadFailed, FieldError
from worker.queues import open_producer
from worker.queues.base import JobState
from worker.settings.queue import QueueSettings

ENGINES = ("sdnext", "a1111", "comfyui", "fooocus")
PATIENCE_S = 300.0
LOOK_EVERY_S = 0.1


def demo(
    out: Annotated[Path, typer.Option(help="Where images and results go.")] = Path("demo-output"),
    jobs: Annotated[int, typer.Option(min=1, max=500, help="How many.")] = 6,
    engine: Annotated[str, typer.Option(help="sdnext, a1111, comfyui or fooocus.")] = "sdnext",
) -> None:
    """Show the whole main job: queue, generation, verification, storage, webhooks."""
    if engine not in ENGINES:
        raise ConfigError((FieldError("--engine", f"is unknown; there are {', '.join(ENGINES)}"),))
    sys.exit(asyncio.run(_Demo(out.resolve(), jobs, engine, SystemClock().now()).run()))


@dataclass
class _Demo:
    out: Path
    count: int
    engine: str
    now: datetime
    states: dict[str, JobState] = field(default_factory=dict)

    async def run(self) -> int:
        from worker.simulators import free_port

        self.out.mkdir(parents=True, exist_ok=True)
        secret, port = new_secret(), free_port()
        async with AsyncExitStack() as stack:
            simulator = await stack.enter_async_context(_simulated(self.engine))
            receiver = await stack.enter_async_context(Receiver.listening(secret))
            queue = QueueSettings(kind="sqlite", sqlite_path=self.out / "queue.db")
            producer = open_producer(queue, CorrectedClock(SystemClock()))
            stack.push_async_callback(producer.aclose)
            wanted = documents(self.count, self.now)
            for job_id, body in wanted.items():
                await producer.submit(job_id, body)
            environment = worker_environment(
                out=self.out, engine=self.engine, engine_url=simulator.url, hook=receiver.url, secret=secret, port=port
            )
            print(f"{len(wanted)} jobs for a simulated {self.engine} server at {simulator.url}; results in {self.out}")
            async with _worker(environment, self.out / "worker.log") as process:
                ended = await self._follow(list(wanted), producer, port, process)
        findings = judged(wanted, self.states, receiver, self.out)
        print_rows(("job", "status", "size", "seconds", "webhook", "image"), [f.row for f in findings])
        bad = [f for f in findings if f.problem]
        for finding in bad:
            complain(f"{finding.job_id}: {finding.problem}")
        if not ended or process.returncode != OK:
            complain(f"the worker ended with {process.returncode}; {self.out / 'worker.log'} says why")
            return FAILED
        good = f"{len(findings) - len(bad)} of {len(findings)}"
        print(f"{good} jobs succeeded, verified, stored and announced; see {self.out}")
        return FAILED if bad else OK

    async def _follow(self, ids: list[str], producer: Any, port: int, process: asyncio.subprocess.Process) -> bool:
        """Show how far the jobs are until all have ended; False when the worker died or time ran out."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + PATIENCE_S
        with _display(len(ids)) as show:
            while loop.time() < ends and process.returncode is None:
                for job_id in [one for one in ids if one not in self.states]:
                    state = await producer.state(job_id)
                    if state is not None and state.status in ("done", "dead"):
                        self.states[job_id] = state
                show(len(self.states), await _doing(port))
                if len(self.states) == len(ids):
                    return True
                await asyncio.sleep(LOOK_EVERY_S)
        return False


def _simulated(engine: str) -> AbstractAsyncContextManager[Any]:
    """A simulated server of this kind, as quick as a good graphics card."""
    from worker import simulators

    match engine:
        case "comfyui":
            knobs = simulators.comfyui.Knobs(step_seconds=0.03, load_seconds=0.5)
            return simulators.comfyui.running(knobs, checkpoints={"dreamshaper_8.safetensors": "sd15"})
        case "fooocus":
            return simulators.fooocus.running("0.5", simulators.fooocus.Knobs(step_seconds=0.03, load_seconds=0.5))
        case _:
            return simulators.running(engine, simulators.Knobs(step_seconds=0.03, load_seconds=0.5))


@asynccontextmanager
async def _worker(environment: dict[str, str], log_file: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """`sd-worker run` as a process, asked to drain when the block ends."""
    with log_file.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "worker", "run", env=environment, stdout=sink, stderr=sink
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def _doing(port: int) -> str:
    """What the worker says of itself, in a few words."""
    url = f"http://[::1]:{port}/v1/status"
    async with http.client(timeout=timedelta(seconds=1), loopback=True) as client:
        try:
            with http.translating(DownloadFailed, url=url):
                status = (await client.get(url)).json()
        except (DownloadFailed, ValueError):
            return "starting"
    jobs = [
        f"{job['id'].rsplit('-', 1)[-1]} {job['hop']}" + (f" {job['progress']:.0%}" if job.get("progress") else "")
        for job in status.get("jobs", [])
    ]
    return f"{status.get('phase', '')}: {', '.join(jobs)}" if jobs else str(status.get("phase", ""))


class _display:  # noqa: N801 - reads as the verb it is
    """Live progress: a bar on a terminal, else a line at each change."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._said = ""
        self._bar: Any = None

    def __enter__(self) -> Any:
        if sys.stdout.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

            columns = (SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns)
            self._bar.start()
            self._task = self._bar.add_task("starting", total=self._total)
        return self._show

    def _show(self, done: int, doing: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=doing)
        elif (said := f"{done}/{self._total} {doing}") != self._said:
            self._said = said
            print(said, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
