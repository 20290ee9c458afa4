"""The box: opened at the start, where it tells of the run before; written each second; closed with a last word."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from worker.blackbox.readings import Machine, Reading
from worker.blackbox.record import End, Held, Record, Server, cut, fitted, last_run
from worker.blackbox.ring import MOST, Ring
from worker.blackbox.verdict import CRASHED, Cause, Scene, cause_of, previous_of, told
from worker.clock import Clock
from worker.engines.base import Process
from worker.engines.child.ending import ASKED
from worker.errors import AuthFailed, ConfigError
from worker.live import Live, LiveJob
from worker.metrics import Metrics
from worker.models.folders import OURS
from worker.node import Identity, Vitals, gpu_memory
from worker.status import Status
from worker.tasks import first_of
from worker.wire import AT_WORK

log = structlog.get_logger()

EVERY_S = 1.0
GPU_BUSY_S, GPU_IDLE_S = 30.0, 300.0
"""How often the GPU is asked for its memory, which costs a process each time."""

LINES = 20
TOKEN_MOST = 64
"""Characters of a queue's own word for a delivery that are kept; longer ones say nothing to it at a later start."""

MISCONFIGURED = 64
THIS_PROCESS = secrets.token_hex(8)
"""A name that no other process has; one that was misconfigured may open its box again."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is written down: asked for at each record."""

    status: Status
    live: Live
    process: Process
    metrics: Metrics
    restarts: Callable[[], int] = int


class BlackBox:
    """Opened by `open`; ``vitals`` are kept up to date by `run`. A box without a file keeps no record, only them.

    A context manager that writes the last word where nobody has: leaving it by an error is a crash.
    """

    def __init__(self, ring: Ring | None, identity: Identity, clock: Clock, machine: Machine, run: str) -> None:
        self.vitals = Vitals()
        self._ring = ring
        self._identity = identity
        self._clock = clock
        self._machine = machine
        self._run = run
        self._began = asyncio.get_running_loop().time()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="blackbox")
        self.cause: Cause | None = None
        """How the run before this one ended; None where no record of it was found."""
        self._seen: Seen | None = None
        self._mark = -1
        self._lines: tuple[str, ...] = ()
        self._ended = False

    @classmethod
    async def open(cls, path: Path | None, identity: Identity, clock: Clock, run: str = THIS_PROCESS) -> Self:
        """The box on this path, and the event that tells how the last run on that disk ended, where one was.

        No path, or a file that cannot be had or used, makes a box that keeps no record. ``run`` is this run's own name.
        """
        ring, machine = await asyncio.to_thread(lambda: (_ring(path), Machine(path.parent if path else Path.cwd())))
        box = cls(ring, identity, clock, machine, run)
        if ring is not None and (records := last_run(ring.records)):
            box._judge(records)
        return box

    def _judge(self, records: Sequence[Record]) -> None:
        """What this process wrote itself, when it was misconfigured, is no run before it."""
        if records[-1].run == self._run:
            return
        scene = Scene(self._machine.boot, self._machine.cgroup, self._machine.read().oom_kills)
        self.cause = cause_of(records, scene)
        say = log.info if self.cause is Cause.CLEAN else log.warning
        say("previous_run_ended", **told(records, self.cause))
        if records[-1].worker == self._identity.id:
            self.vitals.previous = previous_of(records, self.cause)

    def watch(self, seen: Seen) -> None:
        """From now on there is something to write down."""
        self._seen = seen

    async def run(self) -> None:
        """A service."""
        await first_of(self._recording(), *([self._asking()] if self._identity.gpu is not None else []))

    def end(self, exit_code: int, *, error: str | None = None) -> None:
        """The last word, at once: the process is about to end so. Only the first one counts."""
        if self._ended:
            return
        self._ended = True
        drained = self._seen is not None and not len(self._seen.live)
        word = End(exit_code=exit_code, drained=drained or self._seen is None, error=error)
        self._write(self._record().model_copy(update={"end": word}))
        if self._ring is not None:
            self._ring.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        name = None if kind is None else kind.__name__
        if isinstance(error, ConfigError | AuthFailed):
            self.end(MISCONFIGURED, error=name)
        elif isinstance(error, Exception):
            self.end(CRASHED, error=name)
        else:
            self.end(0, error=name)
        self._thread.shutdown(wait=False)

    async def _recording(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            reading = await loop.run_in_executor(self._thread, self._write, self._record())
            self.vitals.memory, self.vitals.disk_free = reading.memory, reading.disk_free
            await asyncio.sleep(EVERY_S)

    async def _asking(self) -> None:
        """Ask the GPU; the time until the next look is cut short by the first job."""
        while True:
            self.vitals.vram = await gpu_memory()
            await asyncio.sleep(GPU_BUSY_S)
            if self._seen is not None and not len(self._seen.live):
                await first_of(self._seen.live.changed(), asyncio.sleep(GPU_IDLE_S - GPU_BUSY_S))

    def _record(self) -> Record:
        """Everything as the event loop has it; the rest is added where it is written."""
        now = asyncio.get_running_loop().time()
        record = Record(
            run=self._run,
            worker=self._identity.id,
            at=round(self._clock.now().timestamp(), 3),
            up_s=round(now - self._began, 1),
            boot=self._machine.boot,
            cgroup=self._machine.cgroup,
            vram=self.vitals.vram,
        )
        if self._seen is None:
            return record
        jobs = sorted(self._seen.live, key=lambda job: job.hop not in AT_WORK)
        return record.model_copy(
            update={
                "phase": str(self._seen.status.phase),
                "reasons": self._seen.status.reasons,
                "jobs": tuple(_held(job, now) for job in jobs),
                "server": _server(self._seen),
                "lines": self._printed(self._seen.process),
            }
        )

    def _printed(self, process: Process) -> tuple[str, ...]:
        """What the server printed last; read anew only where there is more of it."""
        mark = process.log.mark()
        if mark != self._mark:
            self._mark, self._lines = mark, cut(process.log.since(mark - LINES))
        return self._lines

    def _write(self, record: Record) -> Reading:
        """Blocks. A disk that takes no more costs a record, and nothing else."""
        reading = self._machine.read()
        if self._ring is not None:
            figures = {"memory": reading.memory, "oom_kills": reading.oom_kills, "disk_free": reading.disk_free}
            try:
                self._ring.append(fitted(record.model_copy(update=figures), MOST))
            except OSError as error:
                self._give_up(error)
        return reading

    def _give_up(self, error: OSError) -> None:
        log.warning("blackbox_not_kept", error=error.strerror or str(error))
        if self._ring is not None:
            self._ring.close()


def _ring(path: Path | None) -> Ring | None:
    if path is None:
        log.info("blackbox_not_kept", reason="no folder of models")
        return None
    try:
        if path.parent.name == OURS:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Ring(path)
    except OSError as error:
        log.warning("blackbox_not_kept", path=str(path), error=error.strerror or str(error))
        return None


def _held(job: LiveJob, now: float) -> Held:
    token = job.receipt
    is_short = isinstance(token, int) or (isinstance(token, str) and len(token) <= TOKEN_MOST)
    return Held(
        id=job.id,
        hop=str(job.hop),
        hop_s=round(now - job.hop_since, 1),
        held_s=round(now - job.since, 1),
        progress=None if job.progress is None else round(job.progress, 3),
        token=token if is_short else None,
    )


def _server(seen: Seen) -> Server:
    end = seen.process.end
    return Server(
        owned=seen.process.owned,
        end=None if end == ASKED else end,
        restarts=seen.restarts(),
        memory=seen.metrics.engine_holds,
    )
