"""One generation on the wire: wait until nothing runs, submit, watch, and leave nothing running behind."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import structlog

from worker.engines.answer import Answer
from worker.engines.base import Progress
from worker.engines.sdapi.progress import Pulse
from worker.engines.sdapi.server import Server, interrupt_if_possible, pulse_or_none
from worker.engines.watchdog import Experience, Kind, Watchdog
from worker.errors import EngineStalled, WorkerError
from worker.settings.groups import EngineSettings
from worker.tasks import cancel_all, run_guarded, to_the_end

log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the server is asked, in seconds; ``quiet_s`` bounds how long it may take to react to interrupts,
    and how long it may show the very same reading before that counts as left over. It fits into a usual drain, so
    that a job whose step takes longer is still given back."""

    poll_s: float = 0.5
    interrupt_s: float = 1.0
    quiet_s: float = 20.0


NORMAL = Pace()
UNREAD = 4
"""Polls in a row that may fail, as while a preview is built, before a job is submitted without a reading."""


@dataclass(frozen=True, slots=True)
class Done:
    """The answer and the times; ``interrupted``: the server says that the job was cut short, by whomever."""

    answer: Answer
    load_s: float
    generate_s: float
    interrupted: bool


class Standstill:
    """For how long the same has been seen, in loop time."""

    def __init__(self) -> None:
        self._since: tuple[Any, float] | None = None

    def lasts_s(self, seen: Any) -> float:
        """Of what is seen now."""
        now = asyncio.get_running_loop().time()
        if self._since is None or self._since[0] != seen:
            self._since = (seen, now)
        return now - self._since[1]

    def over(self) -> None:
        self._since = None


class Run:
    """What is submitted to one server, one at a time."""

    def __init__(self, settings: EngineSettings, pace: Pace) -> None:
        self._settings = settings
        self._pace = pace
        self._leftover: tuple[Any, ...] | None = None
        self._experience = Experience()

    @property
    def quiet_s(self) -> float:
        return self._pace.quiet_s

    def forget(self) -> None:
        self._leftover = None

    def is_busy(self, pulse: Pulse) -> bool:
        """Whether something runs; SD.Next goes on saying so after an exception, with the same reading for ever."""
        return pulse.busy and pulse.signature != self._leftover

    async def wait_for_idle(self, server: Server) -> None:
        """Interrupt what another left running until it ends. Raises `EngineStalled`, `EngineCrashed`.

        A reading that does not change at all is left over from an exception: the server's own lock will tell.
        """
        loop = asyncio.get_running_loop()
        begun = moved = loop.time()
        last: tuple[Any, ...] | None = None
        interrupted, unread = -self._pace.interrupt_s, 0
        while unread < UNREAD:
            pulse = await server.pulse()
            if pulse is None:
                unread += 1
                await asyncio.sleep(self._pace.poll_s)
                continue
            if not self.is_busy(pulse):
                return
            unread, now = 0, loop.time()
            if pulse.signature != last:
                last, moved = pulse.signature, now
            if now - moved > self._pace.quiet_s and not loads(pulse):
                log.warning("engine_progress_stuck")
                return
            if now - begun > self._settings.load_timeout.total_seconds():
                raise EngineStalled("another generation goes on in spite of interrupts")
            if now - interrupted >= self._pace.interrupt_s:
                interrupted = now
                await interrupt_if_possible(server)
            await asyncio.sleep(self._pace.poll_s)

    async def submit(
        self, server: Server, endpoint: str, body: Mapping[str, Any], kind: Kind, on_progress: Progress
    ) -> Done:
        """One generation and its answer, whatever that says. Raises `EngineStalled`, `EngineCrashed`.

        A 429 of SD.Next's rate limiter, which counts after the work, is answered by turning it off once more.
        """
        done = await self._submit(server, endpoint, body, kind, on_progress)
        if done.answer.status != 429 or not server.dialect.reports_status:
            return done
        await server.set_options({"server_rate_limit": 0})
        return await self._submit(server, endpoint, body, kind, on_progress)

    async def _submit(
        self, server: Server, endpoint: str, body: Mapping[str, Any], kind: Kind, on_progress: Progress
    ) -> Done:
        loop = asyncio.get_running_loop()
        settings, shown = self._settings, self._experience.of(kind)
        watchdog = Watchdog(loop.time(), settings.load_timeout, settings.stall_timeout, shown)
        post = asyncio.create_task(server.submit(endpoint, body), name="engine-submit")
        try:
            answer = await run_guarded(
                _result(post),
                self._watch(server, watchdog, offering(on_progress, server, body)),
                name="engine-generate",
            )
        finally:
            if not post.done():
                await to_the_end(self._stop(server, post))
        ended = loop.time()
        watchdog.ended(ended)
        pulse = await pulse_or_none(server)
        self._leftover = pulse.signature if pulse is not None and pulse.busy else None
        first = watchdog.first_step
        return Done(
            answer,
            load_s=first - watchdog.submitted if first is not None else 0.0,
            generate_s=ended - (first if first is not None else watchdog.submitted),
            interrupted=pulse is not None and pulse.interrupted,
        )

    async def _watch(self, server: Server, watchdog: Watchdog, on_progress: Progress) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._pace.poll_s)
            pulse = await pulse_or_none(server)
            if pulse is not None and not self.is_busy(pulse):
                pulse = None
            watchdog.see(pulse, loop.time())
            if pulse is not None:
                on_progress(pulse.report)

    async def _stop(self, server: Server, post: asyncio.Task[Answer]) -> None:
        """Interrupt until the request has returned: the one sure sign that it no longer runs.

        Raises `EngineStalled` when it does not within its pace allows.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._pace.quiet_s
        while not post.done():
            if loop.time() >= ends:
                await cancel_all({post})
                raise EngineStalled(f"the server did not react to interrupts for {self._pace.quiet_s:g} s")
            await interrupt_if_possible(server)
            await asyncio.wait({post}, timeout=self._pace.interrupt_s)
        if isinstance(error := post.exception(), WorkerError):
            log.info("engine_interrupted", ended=error.message)
        pulse = await pulse_or_none(server)
        self._leftover = pulse.signature if pulse is not None and pulse.busy else None


def offering(on_progress: Progress, server: Server, body: Mapping[str, Any]) -> Progress:
    """With looks at the picture where the job switches live previews on itself, and none can become the result."""
    overrides = body.get("override_settings") or {}
    if server.dialect.swallows or overrides.get("live_previews_enable") is not True:
        return on_progress
    return lambda report: on_progress(replace(report, preview=server.preview if report.sampling else None))


def loads(pulse: Pulse) -> bool:
    """Whether a model is being loaded, during which nothing moves."""
    return any("load" in part.lower() for part in pulse.signature if isinstance(part, str))


async def _result(post: asyncio.Task[Answer]) -> Answer:
    await asyncio.wait({post})
    return post.result()
