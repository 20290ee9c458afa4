"""The image server's way to READY, at the start and after every fault: look, settings, a picture that is verified."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import structlog

from worker.engines.base import Engine, Files, ProgressReport, Reach
from worker.errors import AuthFailed, ConfigError, EngineCrashed, EngineStalled, OutputFlat, WorkerError
from worker.gate import Case, Gate, Verdict
from worker.images import Encoding, verify_all
from worker.inputs import Inputs
from worker.job import Job, Limits, document_of, parse
from worker.metrics import Metrics
from worker.settings.units import Rate
from worker.status import Phase, Status

log = structlog.get_logger()

DEFAULT = {"params": {"prompt": "a red apple on a wooden table", "width": 256, "height": 256, "steps": 4, "seed": 1}}
"""The warm-up job where the operator names none: small, and quick on every GPU."""

POLL_FIRST_S, POLL_MOST_S = 0.2, 2.0
IDLE_LOOK_S = 5.0
PAUSE_FIRST_S, PAUSE_MOST_S = 5.0, 60.0


class NodeUnfit(Exception):
    """The node is given up: its server cannot be made to work."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the server is waited for, and how many failed recoveries are borne; ``never`` to give up."""

    start: timedelta
    restarts: Rate
    never: bool = False


def canary_job(document: bytes, limits: Limits) -> Job:
    """The warm-up job that the operator wrote; `ConfigError` when it is none."""
    try:
        return parse(document_of(document, max_body=limits.max_body), fallback_id="warm-up", limits=limits)
    except WorkerError as error:
        raise ConfigError(f"WORKER_WARMUP: {error.message}") from None


class Canary:
    """The one job whose picture is known to be makeable: it warms the server up, and judges it later."""

    def __init__(self, job: Job, inputs: Inputs, timeout: timedelta) -> None:
        self._job = job
        self._inputs = inputs
        self._timeout_s = timeout.total_seconds()

    async def run(self, engine: Engine) -> None:
        """Generate and verify it; raises what is wrong with the server."""
        work = await engine.admit(self._job)
        files = Files(inputs=await self._inputs.images(work.inputs))
        try:
            async with asyncio.timeout(self._timeout_s):
                output = await engine.generate(work, files, _unheard, fresh=False)
        except TimeoutError:
            raise EngineStalled(f"the warm-up took longer than {self._timeout_s:g} s") from None
        expect = work.expect
        pictures = await verify_all(
            output.images, count=expect.count, width=expect.width, height=expect.height, encoding=Encoding()
        )
        if any(picture.flat for picture in pictures):
            raise OutputFlat("the warm-up image has one colour all over")


def _unheard(report: ProgressReport) -> None:
    """The canary's progress interests nobody."""


class EngineService:
    """Brings the server up, watches it, attends to every fault and verdict, and opens the gate when it is fit."""

    def __init__(
        self,
        gate: Gate,
        canary: Canary,
        status: Status,
        metrics: Metrics,
        *,
        patience: Patience,
        warm_at_start: bool,
        on_ready: Callable[[], None],
    ) -> None:
        self._gate = gate
        self._canary = canary
        self._status = status
        self._metrics = metrics
        self._patience = patience
        self._warm = warm_at_start
        self._on_ready = on_ready
        self._failures: deque[float] = deque()
        self.state: dict[str, object] = {}

    async def run(self) -> None:
        """A service; raises `NodeUnfit` when patience is at an end, `ConfigError` and `AuthFailed` at the start."""
        await self._bring_up()
        self._open("starting")
        while True:
            case = await self._next_case()
            self._metrics.engine_fault(case.error.code)
            await self._attend(case)

    async def _attend(self, case: Case) -> None:
        """Find out whether the server is fit, tell who waits for it, and make it fit if it is not."""
        self._gate.close("engine")
        self._status.move(Phase.WAITING_FOR_ENGINE, case.error.code)
        fit = await self._passes()
        verdict = Verdict.FIT if fit else Verdict.UNFIT
        log.info("verdict_given", verdict=str(verdict), code=case.error.code)
        case.settle(verdict)
        self._gate.settle_all(verdict)
        if not fit:
            await self._bring_up()
        self._open("engine")

    def _open(self, reason: str) -> None:
        self._status.move(Phase.READY)
        self._gate.open(reason)
        self._gate.open("engine")
        self._on_ready()

    async def _bring_up(self) -> None:
        """Wait for the server and warm it up, again and again until it is fit."""
        pause_s = PAUSE_FIRST_S
        while not await self._passes():
            if self._exhausted():
                raise NodeUnfit(f"the warm-up failed {len(self._failures)} times")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_MOST_S)

    async def _passes(self) -> bool:
        """One way through look, settings and canary; a failure counts against the node."""
        await self._reach()
        self._status.move(Phase.WARMING_UP, "warming_up")
        try:
            async with self._gate.maintenance() as engine:
                await engine.prepare()
                if self._warm or self._status.was_ready:
                    await self._canary.run(engine)
        except WorkerError as error:
            self._refuse_at_start(error)
            log.error("warm_up_failed", code=error.code, error=error.message)
            self._failures.append(asyncio.get_running_loop().time())
            self._status.move(Phase.WAITING_FOR_ENGINE, error.code)
            return False
        return True

    async def _reach(self) -> None:
        """Wait until the server is there, saying what it is that we wait for."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._patience.start.total_seconds()
        poll_s = POLL_FIRST_S
        while (reason := await self._missing()) is not None:
            if self._status.reasons != (reason,) or self._status.phase is not Phase.WAITING_FOR_ENGINE:
                self._status.move(Phase.WAITING_FOR_ENGINE, reason)
                log.info("waiting_for_engine", reason=reason)
            if loop.time() >= ends and not self._patience.never:
                raise NodeUnfit(f"the server was not reached within {self._patience.start}: {reason}")
            await asyncio.sleep(poll_s)
            poll_s = min(poll_s * 1.5, POLL_MOST_S)
        if self._status.phase is not Phase.WAITING_FOR_ENGINE:
            self._status.move(Phase.WAITING_FOR_ENGINE, str(Reach.READY))

    async def _missing(self) -> str | None:
        """What the server lacks, None when it can be used."""
        try:
            state = await self._gate.engine.look()
        except AuthFailed as error:
            self._refuse_at_start(error)
            return error.code
        self.state = {"name": state.name, "version": state.version, "model": state.model, "reach": str(state.reach)}
        return None if state.reach is Reach.READY else str(state.reach)

    def _refuse_at_start(self, error: WorkerError) -> None:
        if isinstance(error, ConfigError | AuthFailed) and not self._status.was_ready:
            raise error

    def _exhausted(self) -> bool:
        horizon = asyncio.get_running_loop().time() - self._patience.restarts.per.total_seconds()
        while self._failures and self._failures[0] < horizon:
            self._failures.popleft()
        return len(self._failures) >= self._patience.restarts.count and not self._patience.never

    async def _next_case(self) -> Case:
        """The next fault or question; a server that went away while nobody used it is a fault too."""
        missed = 0
        while True:
            try:
                async with asyncio.timeout(IDLE_LOOK_S):
                    return await self._gate.case()
            except TimeoutError:
                reason = None if self._gate.in_use else await self._missing()
                missed = missed + 1 if reason else 0
                if missed >= 2:
                    return Case(EngineCrashed(f"the server went away while idle: {reason}"))
