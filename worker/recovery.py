"""The image server's way to READY, at the start and after every fault: process, look, settings, warm-up.

What is done about a fault, by its kind:

=========================================  =====================================================================
the process has ended                      started again, then the canary
stalled, GPU fault, out of memory twice    restarted, then the canary
lost while its process runs on             restarted if its port is closed, else the canary
an image that is not what was asked for    the canary; restarted when that fails
too much memory held                       freed; restarted where that does not help
=========================================  =====================================================================

A server that something else started gets the same, but for the restarts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog

from worker.engines.base import EngineState, Process, Reach
from worker.errors import (
    AuthFailed,
    ConfigError,
    EngineCrashed,
    EngineOutOfMemory,
    EngineStalled,
    GpuFault,
    WorkerError,
)
from worker.gate import Case, Gate, Verdict
from worker.metrics import Metrics
from worker.node import NodeUnfit
from worker.settings.units import Rate
from worker.status import Phase, Status
from worker.tasks import cancel_all, first_of
from worker.warmup import Canary

log = structlog.get_logger()

POLL_FIRST_S, POLL_MOST_S = 0.2, 2.0
IDLE_LOOK_S = 5.0
IDLE_CANARY_S = 900.0
"""A server that nobody used for so long shows by a picture that it still can: some answer HTTP and do nothing."""

PAUSE_FIRST_S, PAUSE_MOST_S = 5.0, 60.0
ENDING_S = 2.0
"""How long after a broken connection the process may take to be seen ended."""

CREDENTIALS = "WORKER_ENGINE_USERNAME and _PASSWORD, or WORKER_ENGINE_API_KEY"
"""What the image server refuses when it refuses us."""

STRANGE_POLLS = 6
TOLD_LINES = 200

ONLY_RESTART = (EngineOutOfMemory, EngineStalled, GpuFault)
"""Faults after which only a new process is to be trusted."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the server is waited for, and how many failed recoveries are borne; ``never`` to give up."""

    start: timedelta
    restarts: Rate
    never: bool = False


async def _at_once() -> None:
    """Nothing has to be waited for."""


async def _fast_enough(canary: Callable[[], Awaitable[None]]) -> None:
    """Nobody asks how fast the server is."""


class EngineService:
    """Starts the server, watches it, attends to every fault and verdict, and opens the gate when it is fit.

    ``before_start`` is awaited once, before the server is started for the first time, and ``before_ready`` before it
    is warmed up; what they wait for does not count as time that the server takes. ``after_warm_up`` may run the canary
    again and again before the node is ready for the first time.
    """

    def __init__(
        self,
        gate: Gate,
        canary: Canary,
        process: Process,
        status: Status,
        metrics: Metrics,
        *,
        patience: Patience,
        warm_at_start: bool,
        on_ready: Callable[[], None],
        on_look: Callable[[EngineState], None] = lambda state: None,
        before_start: Callable[[], Coroutine[Any, Any, None]] = _at_once,
        before_ready: Callable[[], Coroutine[Any, Any, None]] = _at_once,
        after_warm_up: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]] = _fast_enough,
    ) -> None:
        self._gate = gate
        self._canary = canary
        self._process = process
        self._status = status
        self._metrics = metrics
        self._patience = patience
        self._warm = warm_at_start
        self._on_ready = on_ready
        self._on_look = on_look
        self._before_start = before_start
        self._before_ready = before_ready
        self._after_warm_up = after_warm_up
        self._failures: deque[float] = deque()
        self._last = ""
        self._started_at: float | None = None
        self._restart_for: str | None = None
        self._born = 0
        """Where the log of the present server begins."""
        self.restarts = 0
        self.state: dict[str, object] = {}

    def described(self) -> dict[str, object]:
        """What is known of the server, for people."""
        return self.state | {"owned": self._process.owned, "restarts": self.restarts, "end": self._process.end}

    async def run(self) -> None:
        """A service; raises `NodeUnfit` when patience is at an end, `ConfigError` and `AuthFailed` at the start."""
        await self._before_start()
        await self._bring_up()
        self._open("starting")
        while True:
            await self._attend(await self._next_case())

    async def _attend(self, case: Case) -> None:
        """Find out whether the server is fit, tell who waits for it, and make it fit if it is not."""
        self._gate.close("engine")
        self._move(Phase.WAITING_FOR_ENGINE, case.reason)
        if case.error is not None:
            self._metrics.engine_fault(case.error.code)
            await self._explain(case.error)
        if await self._needs_restart(case):
            await self._stop(case.reason)
        fit = False
        try:
            fit = await self._passes()
        finally:
            self._tell(case, fit=fit)
        if not fit:
            self._judge_patience()
            await self._stop("warm_up_failed")
            await self._bring_up()
        self._open("engine")

    def _tell(self, case: Case, *, fit: bool) -> None:
        """Answer everybody who waits for a verdict; that the node is given up is an answer too."""
        verdict = Verdict.FIT if fit else Verdict.UNFIT
        log.info("verdict_given", verdict=str(verdict), code=case.reason)
        case.settle(verdict)
        self._gate.settle_all(verdict)

    async def _explain(self, error: WorkerError) -> None:
        """Put into our log what the server printed last: it is gone with the node."""
        if self._process.owned and isinstance(error, EngineCrashed):
            await self._ended_within(ENDING_S)
        lines = self._process.log.since(self._born)[-TOLD_LINES:]
        log.error("engine_fault_found", code=error.code, error=error.message, end=self._process.end, lines=list(lines))

    async def _needs_restart(self, case: Case) -> bool:
        if case.relieved is not None:
            async with self._gate.maintenance() as engine:
                await _freed(engine.free(everything=True))
            relieved = await case.relieved()
            log.warning("engine_memory_high", relieved=relieved, restarted=self._process.owned and not relieved)
            return not relieved
        if self._process.end is not None or isinstance(case.error, ONLY_RESTART):
            return True
        return isinstance(case.error, EngineCrashed) and await self._missing() == Reach.PORT_CLOSED

    async def _ended_within(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._process.ended()
        except TimeoutError:
            return

    async def _stop(self, reason: str) -> None:
        """Stop our server, so that the next way through starts it anew; never under somebody's generation."""
        if not self._process.owned or self._started_at is None:
            return
        async with self._gate.maintenance():
            await self._process.stop()
        self._started_at = None
        self._restart_for = reason

    def _open(self, reason: str) -> None:
        self._move(Phase.READY)
        self._gate.open(reason)
        self._gate.open("engine")
        self._on_ready()

    async def _bring_up(self) -> None:
        """Start the server and warm it up, again and again until it is fit."""
        pause_s = PAUSE_FIRST_S
        while not await self._passes():
            self._judge_patience()
            await self._stop("warm_up_failed")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_MOST_S)

    async def _passes(self) -> bool:
        """One way through start, look, settings and canary; a failure counts against the node."""
        try:
            await self._start()
            await self._reach()
            await self._provided()
            self._move(Phase.WARMING_UP, "warming_up")
            async with self._gate.maintenance() as engine:
                await engine.prepare()
            if self._warm or self._status.was_ready:
                await self._canary.run(self._gate)
            if not self._status.was_ready:
                await self._after_warm_up(lambda: self._canary.run(self._gate))
        except WorkerError as error:
            self._refuse_at_start(error)
            log.error("warm_up_failed", code=error.code, error=error.message, end=self._process.end)
            self._last = f"{error.code}: {error.message}"
            self._failures.append(asyncio.get_running_loop().time())
            self._move(Phase.WAITING_FOR_ENGINE, error.code)
            return False
        return True

    async def _start(self) -> None:
        """Run our server if it does not run."""
        if not self._process.owned:
            return
        if self._process.end is not None:
            await self._stop("engine_lost")
        if self._started_at is not None:
            return
        log.info("engine_starting", restarts=self.restarts, reason=self._restart_for)
        self._born = self._process.log.mark()
        await self._process.start()
        if self._restart_for is not None:
            self.restarts += 1
            self._metrics.engine_restarted(self._restart_for)
        self._started_at, self._restart_for = asyncio.get_running_loop().time(), None

    async def _reach(self) -> None:
        """Wait until the server is there, saying what it is that we wait for. Raises `EngineCrashed` if it ends."""
        loop = asyncio.get_running_loop()
        ends = (self._started_at or loop.time()) + self._patience.start.total_seconds()
        poll_s, strange, unknown = POLL_FIRST_S, 0, 0
        while (reason := await self._missing()) is not None:
            if self._status.reasons != (reason,) or self._status.phase is not Phase.WAITING_FOR_ENGINE:
                self._move(Phase.WAITING_FOR_ENGINE, reason)
                log.info("waiting_for_engine", reason=reason, detail=self.state.get("detail"))
            strange = await self._strange(strange)
            unknown = unknown + 1 if reason == Reach.ROUTES_MISSING else 0
            if unknown == STRANGE_POLLS and not self._status.was_ready:
                await self._unmask()
            if reason == Reach.MODEL_NOT_LOADED:
                ends += await self._provided()
            await self._refuse_ended()
            if loop.time() >= ends and not self._patience.never:
                raise NodeUnfit(f"the server was not reached within {self._patience.start}: {reason}")
            await self._ended_within(poll_s)
            poll_s = min(poll_s * 1.5, POLL_MOST_S)
        await self._strange(STRANGE_POLLS - 1)
        if self._status.phase is not Phase.WAITING_FOR_ENGINE:
            self._move(Phase.WAITING_FOR_ENGINE, str(Reach.READY))

    async def _refuse_ended(self) -> None:
        if self._process.end is not None:
            await self._explain(error := EngineCrashed(f"the server ended while starting: {self._process.end}"))
            raise error

    async def _provided(self) -> float:
        """Wait for what must be there before the node is ready; how many seconds it took.

        Raises `EngineCrashed` when the server ends meanwhile.
        """
        began = asyncio.get_running_loop().time()
        await first_of(self._before_ready(), self._process.ended())
        await self._refuse_ended()
        return asyncio.get_running_loop().time() - began

    async def _unmask(self) -> None:
        """What answers, but not as the configured server does, may be another kind, which `prepare` tells."""
        try:
            async with self._gate.maintenance() as engine:
                await engine.prepare()
        except EngineCrashed:
            return

    async def _strange(self, polls: int) -> int:
        """Count the polls at which the port was another's than our server's; `ConfigError` when it stays so."""
        stranger = await asyncio.to_thread(self._process.stranger)
        if stranger is not None and polls + 1 >= STRANGE_POLLS:
            raise ConfigError(f"WORKER_ENGINE_URL: {stranger}")
        return 0 if stranger is None else polls + 1

    async def _missing(self) -> str | None:
        """What the server lacks, None when it can be used."""
        try:
            state = await self._gate.engine.look()
            self._on_look(state)
        except AuthFailed as error:
            self._refuse_at_start(AuthFailed(f"{CREDENTIALS}: {error.message}"))
            return error.code
        self.state = {
            "name": state.name,
            "version": state.version,
            "model": state.model,
            "reach": str(state.reach),
            "detail": state.detail,
        }
        return None if state.reach is Reach.READY else str(state.reach)

    def _refuse_at_start(self, error: WorkerError) -> None:
        if isinstance(error, ConfigError | AuthFailed) and not self._status.was_ready:
            raise error

    def _move(self, phase: Phase, *reasons: str) -> None:
        """The phase is ours to tell until the drain; a verdict may be waited for in it."""
        if self._status.phase not in (Phase.DRAINING, Phase.STOPPED):
            self._status.move(phase, *reasons)

    def _judge_patience(self) -> None:
        """Raises `NodeUnfit` when as many recoveries have failed as are borne."""
        horizon = asyncio.get_running_loop().time() - self._patience.restarts.per.total_seconds()
        while self._failures and self._failures[0] < horizon:
            self._failures.popleft()
        if len(self._failures) >= self._patience.restarts.count and not self._patience.never:
            raise NodeUnfit(f"the warm-up failed {len(self._failures)} times, at last: {self._last}")

    async def _next_case(self) -> Case:
        """The next fault or question; a server that went away while nobody used it is a fault too."""
        missed = 0
        while True:
            if (case := await self._told_within(IDLE_LOOK_S)) is not None:
                return case
            if self._gate.in_use:
                missed = 0
                continue
            missed = missed + 1 if (reason := await self._missing()) else 0
            if missed >= 2:
                return Case(EngineCrashed(f"the server went away while idle: {reason}"))
            if not missed and self._gate.idle_s >= IDLE_CANARY_S and (case := await self._tried()) is not None:
                return case

    async def _told_within(self, seconds: float) -> Case | None:
        """A case that comes within this time, or the end of our server's process."""
        case = asyncio.create_task(self._gate.case(), name="engine-case")
        ended = asyncio.create_task(self._process.ended(), name="engine-ended")
        try:
            await asyncio.wait({case, ended}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if case.done():
                return case.result()
            return Case(EngineCrashed(f"the server ended: {ended.result()}")) if ended.done() else None
        finally:
            await cancel_all({case, ended})

    async def _tried(self) -> Case | None:
        """Have the idle server make a picture."""
        try:
            await self._canary.run(self._gate)
        except WorkerError as error:
            return Case(error)
        return None


async def _freed(work: Awaitable[None]) -> None:
    """Memory may be given back or not: whoever measures it afterwards will see."""
    try:
        await work
    except WorkerError as error:
        log.warning("engine_not_freed", code=error.code, error=error.message)
