"""Phase BLOCKED: where an exit would ban the node, one with a mistake of its operator's stays and tells it.

The probes are answered from the first moment; what may heal without us is tried again; only a node that could not be
helped for long enough ends after all.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from worker.errors import AuthFailed, ConfigError
from worker.log import redact
from worker.settings.groups import Settings
from worker.status import Phase, Status
from worker.tasks import cancel_all
from worker.web.server import serve

log = structlog.get_logger()

TELL_EVERY_S = 60.0
TRY_FIRST_S, TRY_MOST_S = 5.0, 120.0
TRYING_AGAIN = "trying_again"

Mistake = ConfigError | AuthFailed
"""What the operator alone can change."""

Place = tuple[str, int]


def reasons_of(error: Mistake) -> tuple[str, ...]:
    """A line for each mistake, ``VARIABLE: what is wrong``, with no secret and no query of a URL."""
    lines = map(str, error.mistakes) if isinstance(error, ConfigError) else (f"{error.code}: {error.message}",)
    return tuple(map(redact, lines))


class Stay:
    """Starts the worker, and while a mistake keeps it from being ready for the first time, stays and tries again.

    ``limit`` is how long it stays in all, from the first mistake on; ``forget`` lets go of what a start that failed
    has left, in a thread.
    """

    def __init__(
        self, status: Status, *, limit: timedelta, rng: random.Random, forget: Callable[[], None] = lambda: None
    ) -> None:
        self._status = status
        self._limit_s = limit.total_seconds()
        self._rng = rng
        self._forget = forget
        self._ends: float | None = None
        self._tell_at = 0.0
        self._told: tuple[str, ...] = ()
        self._pause_s = TRY_FIRST_S
        self._tries = 0

    async def run(self, read: Callable[[], Awaitable[Settings]], start: Callable[[Settings], Awaitable[int]]) -> int:
        """What a start ends with, however often it has to be tried; each reads its settings anew.

        Raises the last mistake when the time is up. Both may raise a `Mistake` before the worker was ready once.
        """
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                return await self._tried(read, start)
            except (ConfigError, AuthFailed) as error:
                if self._status.was_ready:
                    raise
                await self._stay(_alone(error), took_s=loop.time() - began)

    async def _tried(self, read: Callable[[], Awaitable[Settings]], start: Callable[[Settings], Awaitable[int]]) -> int:
        settings = await read()
        self._leave()
        return await start(settings)

    def described(self) -> dict[str, object]:
        """How long it has been so, for people; empty before the first mistake."""
        if self._ends is None:
            return {}
        left_s = max(0.0, self._ends - asyncio.get_running_loop().time())
        return {"blocked": {"tries": self._tries, "exits_in_s": round(left_s, 1)}}

    async def _stay(self, error: Mistake, *, took_s: float) -> None:
        """Be BLOCKED until the next try is due; at the end of all raises the error itself.

        Trying takes no more than half of the time, however long a server takes to start.
        """
        loop, reasons = asyncio.get_running_loop(), reasons_of(error)
        self._tries += 1
        if self._ends is None:
            self._ends = loop.time() + self._limit_s
        self._status.move(Phase.BLOCKED, *reasons)
        self._tell(error, reasons)
        due = min(loop.time() + max(took_s, self._next_pause_s()), self._ends)
        await asyncio.to_thread(self._forget)
        while (left_s := min(due, self._tell_at) - loop.time()) > 0:
            await asyncio.sleep(left_s)
            self._tell(error, reasons)
        if loop.time() >= self._ends:
            log.error("configuration_refused", code=error.code, error="\n".join(reasons), tries=self._tries)
            raise error

    def _next_pause_s(self) -> float:
        """Growing, and not the same on all nodes of a group that one mistake blocks at once."""
        pause_s = self._pause_s
        self._pause_s = min(pause_s * 2, TRY_MOST_S)
        return pause_s * self._rng.uniform(0.8, 1.0)

    def _tell(self, error: Mistake, reasons: tuple[str, ...]) -> None:
        """A line at once for what is new, then one a minute."""
        now = asyncio.get_running_loop().time()
        if now < self._tell_at and reasons == self._told:
            return
        self._tell_at, self._told = now + TELL_EVERY_S, reasons
        log.error("start_blocked", code=error.code, mistakes=list(reasons), tries=self._tries, **self._left(now))

    def _left(self, now: float) -> dict[str, float]:
        return {} if self._ends is None else {"exits_in_s": round(self._ends - now, 1)}

    def _leave(self) -> None:
        """Out of BLOCKED, since the settings can be read; what was wrong is still told."""
        if self._status.phase is Phase.BLOCKED:
            self._status.move(Phase.PROVISIONING, TRYING_AGAIN, *self._status.reasons)


def _alone(error: Mistake) -> Mistake:
    """The error without the frames in which it came, and all that they hold."""
    error.__context__ = None
    return error.with_traceback(None)


class Front:
    """An ASGI application that answers from the first moment of the process to its last.

    It listens at ``place``, and at ``instead`` while it cannot; it shows its ``own`` application whenever no other is
    to be seen.
    """

    def __init__(self, own: ASGIApp, place: Place, *, instead: Place, on_listening: Callable[[Place], None]) -> None:
        self._own = self._shown = own
        self._wanted, self._instead = place, instead
        self._on_listening = on_listening
        self._at: Place | None = None
        self._serving: asyncio.Task[None] | None = None
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._shown(scope, receive, send)

    async def showing(self, app: ASGIApp) -> None:
        """A service: until it is cancelled, this one answers."""
        self._shown = app
        try:
            await asyncio.Event().wait()
        finally:
            self._shown = self._own

    async def open(self) -> None:
        """Listen where it should, if it does not yet. Raises `ConfigError` where that cannot be."""
        if self._at == self._wanted:
            return
        try:
            await self._listen(self._wanted)
        except ConfigError:
            if self._at is None:
                with suppress(ConfigError):
                    await self._listen(self._instead)
            raise

    async def broken(self) -> None:
        """A guard: raises what the service ends with that should last."""
        await self._broken

    async def aclose(self) -> None:
        """Stop listening; running answers have their moment to end."""
        if self._serving is not None:
            await cancel_all({self._serving})
        self._broken.cancel()

    async def _listen(self, place: Place) -> None:
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(self, *place, on_listening=port.set_result), name="front")
        either: set[asyncio.Future[Any]] = {serving, port}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
            before, self._serving, self._at = self._serving, serving, place
        finally:
            if self._serving is not serving:
                await cancel_all({serving})
        serving.add_done_callback(self._ended)
        self._on_listening((place[0], port.result()))
        if before is not None:
            await cancel_all({before})

    def _ended(self, serving: asyncio.Task[None]) -> None:
        if not serving.cancelled() and (error := serving.exception()) is not None and not self._broken.done():
            self._broken.set_exception(error)


@dataclass(frozen=True, slots=True)
class Tenure:
    """What outlasts a start: the phase, and who answers meanwhile."""

    status: Status
    front: Front
