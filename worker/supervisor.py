"""The process: its services, its signals, and how it stops without losing anything."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from enum import IntEnum

import structlog

from worker.blocked import Mistake, reasons_of
from worker.drain import Drain
from worker.errors import AuthFailed, ConfigError
from worker.intake import Intake
from worker.node import NodeUnfit
from worker.signals import Signals
from worker.status import Phase, Status
from worker.tasks import cancel_all

log = structlog.get_logger()

SETTLE_GRACE_S = 5.0
"""After the drain deadline, for answering the queue."""

MOVED_WITHIN_S = 300.0
"""A node that asked to be moved, and was heard, is gone within seconds; after this time it ends by itself."""

Service = Callable[[], Awaitable[None]]


class ExitCode(IntEnum):
    CLEAN = 0
    FAILED = 1
    CONFIG = 64
    NEVER_READY = 69
    INTERNAL = 70
    GIVEN_UP = 75


class Supervisor:
    """Runs the services until a signal, a crash or an unfit node, then drains.

    ``http`` ends last, so that probes are answered to the end. A service that returns is over; one that raises
    stops the process. The drain waits for the ``lasting`` ones too, which have something to tell when it begins.
    With ``stays`` a mistake of the operator's that shows before the first READY ends in phase BLOCKED.
    ``leave`` asks for an unfit node to be moved, for a reason in words, and says whether it will be.
    """

    def __init__(
        self,
        status: Status,
        drain: Drain,
        intake: Intake,
        services: Mapping[str, Service],
        http: Service,
        *,
        drain_timeout: timedelta,
        stop_at_once: Callable[[], None],
        lasting: Mapping[str, Service] | None = None,
        signals: Signals | None = None,
        stays: bool = False,
        leave: Callable[[str], Awaitable[bool]] | None = None,
        on_stopped: Callable[[ExitCode], None] = lambda code: None,
    ) -> None:
        self._status = status
        self._drain = drain
        self._intake = intake
        self._services = services
        self._lasting = lasting or {}
        self._http = http
        self._drain_timeout_s = drain_timeout.total_seconds()
        self._stop_at_once = stop_at_once
        self._signals = signals or Signals()
        self._stays = stays
        self._refused: Mistake | None = None
        self._leave = leave
        self._on_stopped = on_stopped
        self._unfit: str | None = None
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Drain; asked a second time, stop at once."""
        if self._stop.is_set():
            log.warning("stopped_at_once")
            self._stop_at_once()
        log.info("stop_asked")
        self._stop.set()

    async def run(self) -> ExitCode:
        """Everything, until the end; the exit code says how it came.

        Raises the `Mistake` that leaves the phase BLOCKED, unless somebody asked to stop meanwhile.
        """
        if self._status.phase is Phase.PROVISIONING:
            self._status.move(Phase.STARTING, *self._status.reasons)
        http = asyncio.create_task(_service(self._http), name="service-http")
        intake = asyncio.create_task(self._intake.run(), name="service-intake")
        lasting, others = _started(self._lasting), _started(self._services)
        try:
            with self._signals.heard(self.stop):
                code = await self._until_over({http, intake, *lasting, *others})
                await self._ending(others)
                await self._drained({intake, *lasting})
                code = await self._left(code)
        finally:
            await self._intake.aclose()
            await cancel_all({intake, *lasting, *others})
            if self._refused is None or self._stop.is_set():
                self._status.move(Phase.STOPPED)
            await cancel_all({http})
        if self._refused is not None:
            if self._status.phase is Phase.BLOCKED:
                raise self._refused
            code = ExitCode.CLEAN
        log.info("stopped", exit_code=int(code))
        self._on_stopped(code)
        return code

    async def _ending(self, services: set[asyncio.Task[None]]) -> None:
        """Enter the phase in which everything ends; in BLOCKED nobody else has a phase to tell."""
        if self._refused is None:
            self._status.move(Phase.DRAINING, "draining")
            return
        await cancel_all(services)
        self._status.move(Phase.BLOCKED, *reasons_of(self._refused))

    async def _until_over(self, services: set[asyncio.Task[None]]) -> ExitCode:
        stop = asyncio.create_task(self._stopped(), name="stop-signal")
        watched: set[asyncio.Task[None]] = set(services)
        try:
            while True:
                done, _ = await asyncio.wait({stop, *watched}, return_when=asyncio.FIRST_COMPLETED)
                for service in done & watched:
                    watched.discard(service)
                    if (code := self._code_of(service)) is not None:
                        return code
                if stop in done:
                    return ExitCode.CLEAN
        finally:
            await cancel_all({stop})

    async def _stopped(self) -> None:
        await self._stop.wait()

    def _code_of(self, service: asyncio.Task[None]) -> ExitCode | None:
        """What the end of a service means for the process, None when it does not matter."""
        error = None if service.cancelled() else service.exception()
        match error:
            case None:
                return None
            case NodeUnfit():
                log.error("node_given_up", error=str(error))
                self._unfit = str(error)
                return ExitCode.GIVEN_UP if self._status.was_ready else ExitCode.NEVER_READY
            case ConfigError() | AuthFailed() if self._stays and not self._status.was_ready:
                self._refused = error
                return ExitCode.CONFIG
            case ConfigError() | AuthFailed():
                log.error("configuration_refused", code=error.code, error=error.message)
                return ExitCode.CONFIG
            case _:
                log.error("service_broke", service=service.get_name(), exc_info=error)
                self._status.stuck(f"{service.get_name()}_broke")
                return ExitCode.INTERNAL

    async def _drained(self, lasting: set[asyncio.Task[None]]) -> None:
        """Give back what cannot finish, let finish what can, and settle both."""
        deadline = asyncio.get_running_loop().time() + self._drain_timeout_s
        self._drain.begin(deadline)
        try:
            async with asyncio.timeout_at(deadline + SETTLE_GRACE_S):
                await asyncio.wait(lasting)
        except TimeoutError:
            log.warning("drain_incomplete")

    async def _left(self, code: ExitCode) -> ExitCode:
        """Have an unfit node moved, and wait for that with what it held given back.

        The code, where it is not moved; `ExitCode.CLEAN` when it is ended for it, so that nothing more comes of it.
        """
        if self._unfit is None or self._leave is None or self._stop.is_set() or not await self._leave(self._unfit):
            return code
        self._status.move(Phase.DRAINING, "reallocating")
        try:
            async with asyncio.timeout(MOVED_WITHIN_S):
                await self._stop.wait()
        except TimeoutError:
            log.error("reallocation_missed", waited_s=MOVED_WITHIN_S)
            return code
        return ExitCode.CLEAN


def _started(services: Mapping[str, Service]) -> set[asyncio.Task[None]]:
    return {asyncio.create_task(_service(run), name=f"service-{name}") for name, run in services.items()}


async def _service(run: Service) -> None:
    await run()
