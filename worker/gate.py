"""The one right to use the image server, and the question whether the server is fit.

Jobs take turns while the gate is open. A job that meets an engine fault closes it; only the engine service opens
it again, after a look, a warm-up or canary, and whatever else makes the server fit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import StrEnum

import structlog

from worker.engines.answer import Answer
from worker.engines.base import Engine, Files, NativeCall, Output, Progress, Work
from worker.errors import AuthFailed, EngineCrashed, EngineStalled, GpuFault, WorkerError
from worker.mentions import Place

log = structlog.get_logger()

FAULTS = (AuthFailed, EngineCrashed, EngineStalled, GpuFault)
"""Errors that close the gate wherever they arise."""


GRAIN_S = 0.001


class Verdict(StrEnum):
    FIT = "fit"
    UNFIT = "unfit"


@dataclass(eq=False, slots=True)
class Case:
    """Something for the engine service: a fault, a job that wants to know whether the server is fit, or upkeep.

    ``relieved`` belongs to upkeep for want of memory: whether giving back what the server can was enough.
    """

    error: WorkerError | None
    answer: asyncio.Future[Verdict] | None = None
    relieved: Callable[[], Awaitable[bool]] | None = None

    @property
    def reason(self) -> str:
        return "engine_memory" if self.error is None else self.error.code

    def settle(self, verdict: Verdict) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(verdict)


class Turn:
    """The engine, for as long as the turn lasts; faults close the gate even when nobody hears of them any more."""

    def __init__(self, gate: Gate, engine: Engine) -> None:
        self._gate = gate
        self._engine = engine

    async def generate(self, work: Work, files: Files, on_progress: Progress, *, fresh: bool = False) -> Output:
        with self._gate.noticing():
            return await self._engine.generate(work, files, on_progress, fresh=fresh)

    async def relay(self, call: NativeCall) -> Answer:
        with self._gate.noticing():
            return await self._engine.relay(call)

    async def free(self, everything: bool) -> None:
        with self._gate.noticing():
            await self._engine.free(everything)


class Letting:
    """What the model cache asks of the server: what it holds, and to let go of files, which takes a turn.

    A closed gate grants that turn too: the canary may be what waits for the room. ``unloading`` is told of each time.
    """

    def __init__(self, gate: Gate, unloading: Callable[[], None] = lambda: None) -> None:
        self._gate = gate
        self._unloading = unloading

    async def loaded(self) -> frozenset[Place]:
        return await self._gate.engine.loaded()

    async def unload(self, places: Collection[Place]) -> None:
        async with self._gate.maintenance() as engine:
            self._unloading()
            with self._gate.noticing():
                await engine.unload(places)


class Gate:
    """Closed from the start, for the reason ``starting``; open while there is no reason against it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._closed: dict[str, float] = {"starting": 0.0}
        """The reasons, with the loop's time of each."""
        self._lock = asyncio.Lock()
        self._cases: deque[Case] = deque()
        self._changed = asyncio.Event()
        self._used_at: float | None = None
        self._between: Callable[[], Awaitable[None]] | None = None

    @property
    def is_open(self) -> bool:
        return not self._closed

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(sorted(self._closed))

    @property
    def in_use(self) -> bool:
        return self._lock.locked()

    @property
    def idle_s(self) -> float:
        """Seconds since the engine was last used; 0 while it is, and before its first use."""
        if self.in_use or self._used_at is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._used_at

    def close(self, reason: str) -> None:
        self._closed.setdefault(reason, asyncio.get_running_loop().time())
        self._stir()

    def open(self, reason: str) -> None:
        """Take one reason away."""
        self._closed.pop(reason, None)
        self._stir()

    async def opened(self) -> None:
        while not self.is_open:
            await self._changed.wait()

    async def closed_for(self, reason: str, seconds: float) -> None:
        """Wait until the gate has been closed for this reason so long without a break."""
        loop = asyncio.get_running_loop()
        while True:
            since = self._closed.get(reason)
            due = None if since is None else since + seconds
            if due is not None and loop.time() >= due - GRAIN_S:
                return
            try:
                async with asyncio.timeout_at(due):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def between_turns(self, look: Callable[[], Awaitable[None]]) -> None:
        """Have somebody look at the server after each turn that ended well, before the next one is granted."""
        self._between = look

    async def taken(self) -> None:
        """Wait until the engine is in use."""
        while not self.in_use:
            await self._changed.wait()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """The right to generate; goes to whoever is ready first, and only while the gate is open."""
        async with self._entered():
            yield Turn(self, self.engine)
            if self._between is not None:
                await self._between()

    @asynccontextmanager
    async def _entered(self) -> AsyncIterator[None]:
        while True:
            await self.opened()
            async with self._held():
                if self.is_open:
                    yield
                    return

    @asynccontextmanager
    async def _held(self) -> AsyncIterator[None]:
        async with self._lock:
            self._stir()
            try:
                yield
            finally:
                self._used_at = asyncio.get_running_loop().time()

    @asynccontextmanager
    async def maintenance(self) -> AsyncIterator[Engine]:
        """A turn for the engine service, which a closed gate grants."""
        async with self._held():
            yield self.engine

    @contextmanager
    def noticing(self) -> Iterator[None]:
        """Faults of the server that come out of the block close the gate."""
        try:
            yield
        except FAULTS as error:
            self.fault(error)
            raise

    def fault(self, error: WorkerError) -> None:
        """Close the gate for a fault of the server and have the engine service look into it."""
        if "engine" not in self._closed:
            log.error("engine_fault", code=error.code, error=error.message)
        self.close("engine")
        self._cases.append(Case(error))
        self._stir()

    async def verdict(self, error: WorkerError) -> Verdict:
        """Close the gate and wait for the engine service to say whether the server is fit."""
        self.close("engine")
        answer: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._cases.append(Case(error, answer))
        self._stir()
        return await answer

    def upkeep(self, relieved: Callable[[], Awaitable[bool]]) -> None:
        """Close the gate and have the engine service make room between two jobs."""
        self.close("engine")
        self._cases.append(Case(None, relieved=relieved))
        self._stir()

    async def case(self) -> Case:
        """For the engine service: the next case, in the order of their coming."""
        while not self._cases:
            await self._changed.wait()
        return self._cases.popleft()

    def settle_all(self, verdict: Verdict) -> None:
        """Answer every case that still waits: they are all about the same server."""
        while self._cases:
            self._cases.popleft().settle(verdict)

    def _stir(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
