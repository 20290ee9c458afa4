"""The models that must be there before the image server starts, and before the node is ready.

A service fetches them, several at a time; whoever starts the server, and whoever calls the node ready, waits for it
and tells meanwhile what is missing. What will never come ends the start as bad configuration; what is only away is
tried until it is back; only a node that is too slow, or has no room, is given up when the time is up.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

import structlog

from worker.errors import (
    AuthFailed,
    ConfigError,
    DependencyFailed,
    DiskFull,
    DownloadFailed,
    FieldError,
    InvalidJob,
    JobRefused,
    ModelCorrupt,
    WorkerError,
)
from worker.mentions import Place
from worker.models.base import Entry, InFlight, Models, Priority, Wanted
from worker.models.manifest import VARIABLE, Manifest, When
from worker.node import NodeUnfit
from worker.retry import Policy, retrying
from worker.status import Phase, Status
from worker.tasks import cancel_all, run_guarded

log = structlog.get_logger()

T = TypeVar("T")

TOGETHER = 4
"""Models that are fetched at a time, each over several connections."""

TELL_EVERY_S, LOG_EVERY_S = 1.0, 10.0
GRACE_S = 5.0
"""After one model is refused, for others to be refused too, so that the operator hears of all at once."""

CORRUPT_MOST = 3
"""Times that a file may be other than what was asked for before it is the list that is wrong."""

SHOWN = 8
"""Transfers that the reasons tell."""

_GB = 1_000_000_000
FOR_EVER = timedelta(days=3650)
POLICY = Policy(attempts=1_000_000, first=timedelta(seconds=5), most=timedelta(minutes=2))


async def as_it_is(wanted: Wanted) -> Wanted:
    return wanted


class Provisioning:
    """What the operator declared, fetched in its order.

    ``declared`` reads the list; None where there is nothing to fetch, and then nobody waits. ``typed`` completes a
    model whose kind only its hub knows. ``timeout`` is for all that must be there before the node is ready; with
    ``never`` (to give up) it does not count.
    """

    def __init__(
        self,
        models: Models,
        status: Status,
        declared: Callable[[], Awaitable[Manifest]] | None,
        *,
        timeout: timedelta,
        rng: random.Random,
        typed: Callable[[Wanted], Awaitable[Wanted]] = as_it_is,
        never: bool = False,
    ) -> None:
        self._models = models
        self._status = status
        self._declared = declared
        self._timeout = FOR_EVER if never else timeout
        self._rng = rng
        self._typed = typed
        self._slots = asyncio.Semaphore(TOGETHER)
        self._ends = 0.0
        self._wanted: int | None = None if declared else 0
        self._done = 0
        self._there: set[Place] = set()
        self._may_start, self._may_be_ready = asyncio.Event(), asyncio.Event()
        if declared is None:
            self._may_start.set()
            self._may_be_ready.set()

    async def run(self) -> None:
        """A service that is over when all is there that must be.

        Raises `ConfigError` for what will never come, `NodeUnfit` when the time is up. Cancelled, it leaves what has
        come of each model to be resumed.
        """
        if self._declared is None:
            return
        self._ends = asyncio.get_running_loop().time() + self._timeout.total_seconds()
        manifest = await self._persisted(self._declared, VARIABLE)
        for note in manifest.notes:
            log.warning("manifest_part_not_done", part=note.field, detail=note.message)
        self._wanted = sum(item.when is not When.BACKGROUND for item in manifest.items)
        for when, event in ((When.BEFORE_ENGINE, self._may_start), (When.BEFORE_READY, self._may_be_ready)):
            await self._provided(when, manifest.of(when))
            event.set()
        for wanted in manifest.of(When.BACKGROUND):
            await self._hinted(wanted)

    async def before_engine(self) -> None:
        """Until the server may be started: for whoever starts it. The phase says meanwhile what is missing."""
        if not self._may_start.is_set():
            await self._told(self._may_start, Phase.PROVISIONING)
            self._move(Phase.STARTING, "starting")

    async def before_ready(self) -> None:
        """Until the node may be called ready, as far as its models go."""
        await self._told(self._may_be_ready)

    def described(self) -> dict[str, object]:
        """How far it is, for people: models that must be there, those that are, and transfers."""
        lines = [progress_text(transfer) for transfer in self._transfers()]
        return {"wanted": self._wanted, "there": self._done, "transfers": lines}

    async def _provided(self, when: When, wanted: Sequence[Wanted]) -> None:
        if not wanted:
            return
        log.info("models_provisioned", when=str(when), models=len(wanted))
        await run_guarded(self._all(wanted), self._logged(), name="provisioning")
        if gone := self._there - {entry.place for entry in self._models.entries()}:
            names = ", ".join(sorted(map(str, gone)))
            raise ConfigError((FieldError(VARIABLE, f"does not fit into the cache: {names} had to give way"),))

    async def _all(self, wanted: Sequence[Wanted]) -> None:
        tasks = {asyncio.create_task(self._one(one), name=f"provision-{one.field}") for one in wanted}
        try:
            _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            if pending:
                await asyncio.wait(pending, timeout=GRACE_S)
            raise_worst([task for task in tasks if task.done()])
        finally:
            await cancel_all(tasks)

    async def _one(self, wanted: Wanted) -> None:
        began = asyncio.get_running_loop().time()
        entry = await self._persisted(lambda: self._fetched(wanted), wanted.field)
        self._there.add(entry.place)
        self._done += 1
        seconds = round(asyncio.get_running_loop().time() - began, 1)
        log.info("model_provided", field=wanted.field, model=str(entry.place), bytes=entry.size, seconds=seconds)

    async def _fetched(self, wanted: Wanted) -> Entry:
        async with self._slots:
            return await self._models.fetch(await self._typed(wanted), Priority.START)

    async def _hinted(self, wanted: Wanted) -> None:
        try:
            self._models.hint(await self._typed(wanted))
        except WorkerError as error:
            log.warning("model_not_hinted", field=wanted.field, code=error.code, error=error.message)

    async def _persisted(self, operation: Callable[[], Awaitable[T]], field: str) -> T:
        """What the operation gives, however often it has to be tried.

        An outage outlasts the time: it would be the same on every other node, and giving them up would take the fleet
        down with the source.
        """
        while True:
            try:
                return await self._tried(operation, field)
            except WorkerError as error:
                if not is_outage(error):
                    raise ended_by(error, field) from None
                log.error("model_source_stays_away", field=field, code=error.code, error=error.message)
            await asyncio.sleep(POLICY.most.total_seconds())
            self._ends = asyncio.get_running_loop().time() + self._timeout.total_seconds()

    async def _tried(self, operation: Callable[[], Awaitable[T]], field: str) -> T:
        """What the operation gives within the time. Raises `TooSlow` where the time ended within the first try."""
        transient = Transient()

        def announce(error: WorkerError, attempt: int, wait: timedelta) -> None:
            log.warning("model_still_away", field=field, code=error.code, error=error.message, tries=attempt)

        return await retrying(
            operation,
            POLICY,
            budget=timedelta(seconds=self._ends - asyncio.get_running_loop().time()),
            rng=self._rng,
            retry_on=transient,
            on_retry=announce,
            out_of_time=TooSlow,
        )

    async def _told(self, event: asyncio.Event, phase: Phase | None = None) -> None:
        while not event.is_set():
            reasons = reasons_of(self._wanted, self._done, self._transfers())
            self._move(phase or self._status.phase, *reasons)
            with suppress(TimeoutError):
                async with asyncio.timeout(TELL_EVERY_S):
                    await event.wait()

    async def _logged(self) -> None:
        while True:
            await asyncio.sleep(LOG_EVERY_S)
            lines = [progress_text(transfer) for transfer in self._transfers()]
            log.info("models_awaited", there=self._done, wanted=self._wanted, transfers=lines)

    def _transfers(self) -> tuple[InFlight, ...]:
        return tuple(one for one in self._models.transfers() if one.priority is not Priority.BACKGROUND)

    def _move(self, phase: Phase, *reasons: str) -> None:
        if self._status.phase not in (Phase.DRAINING, Phase.STOPPED):
            self._status.move(phase, *reasons)


class TooSlow(DownloadFailed):
    """A transfer was under way when the time was up."""

    code = DownloadFailed.code


def is_outage(error: WorkerError) -> bool:
    """Whether the error tells of a source that does not answer, and nothing of this node."""
    return isinstance(error, DependencyFailed) and not isinstance(error, AuthFailed | ModelCorrupt | TooSlow)


class Transient:
    """Whether another try is worth it; asked about one model's errors in turn, it counts the corrupt ones."""

    def __init__(self) -> None:
        self._corrupt = 0

    def __call__(self, error: WorkerError) -> bool:
        if isinstance(error, ModelCorrupt):
            self._corrupt += 1
            return self._corrupt < CORRUPT_MOST
        return isinstance(error, DependencyFailed | DiskFull) and not isinstance(error, AuthFailed)


def ended_by(error: WorkerError, field: str) -> Exception:
    """What the last error of a model means for the process: the operator's mistake, the node's end, or a bug."""
    match error:
        case ConfigError():
            return error
        case InvalidJob():
            return ConfigError(tuple(FieldError(one.field or field, one.message) for one in error.errors))
        case JobRefused() | AuthFailed() | ModelCorrupt():
            return ConfigError((FieldError(field, error.message),))
        case TooSlow() | DiskFull():
            return NodeUnfit(f"{field}: {error.code}: {error.message}")
        case _:
            return error


def raise_worst(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Raise what ended any of these tasks: every mistake of the operator's together, else one of the others."""
    errors = [error for task in tasks if (error := task.exception()) is not None]
    mistakes = tuple(mistake for error in errors if isinstance(error, ConfigError) for mistake in error.mistakes)
    if mistakes:
        raise ConfigError(tuple(sorted(mistakes, key=lambda mistake: mistake.field)))
    if errors:
        raise errors[0]


def reasons_of(wanted: int | None, there: int, transfers: Sequence[InFlight]) -> tuple[str, ...]:
    """Why the node is not ready, as far as its models go: a code, how many there are, and a line a transfer.

    ``wanted`` is None while nobody knows how many there should be.
    """
    if wanted is None:
        return "models_missing", "the list of models is not read yet"
    lines = tuple(progress_text(transfer) for transfer in transfers[:SHOWN])
    more = (f"and {len(transfers) - SHOWN} more",) if len(transfers) > SHOWN else ()
    return ("models_missing", f"{there} of {wanted} models are there", *lines, *more)


def progress_text(transfer: InFlight) -> str:
    """``checkpoint/x.safetensors: 3.2 of 6.9 GB``; what is reserved grows where nobody knows the size."""
    return f"{transfer.place}: {transfer.done / _GB:.1f} of {transfer.reserved / _GB:.1f} GB"
