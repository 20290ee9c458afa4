"""The composition root: which parts there are, how they begin, and in which order they end."""

from __future__ import annotations

import asyncio
import gc
import random
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog

from dispatcher.api.app import create_app
from dispatcher.auth import Access, Identities
from dispatcher.demand import Demands
from dispatcher.desk import Desk
from dispatcher.documents import Counts
from dispatcher.fleet import Fleet
from dispatcher.heartbeats import Heartbeats
from dispatcher.identity import SALAD_KEYS, IdentityTokens
from dispatcher.lookout import Lookout
from dispatcher.losses import Losses
from dispatcher.metrics import Metrics, Observed
from dispatcher.outbox import Outbox
from dispatcher.settings import PREFIX, AccessSettings, Settings
from dispatcher.store import Store, open_store
from dispatcher.store.base import StoreUnavailable
from dispatcher.upkeep import Pace, Upkeep
from dispatcher.view import View
from worker.clock import Clock, CorrectedClock, SystemClock
from worker.errors import ConfigError, FieldError
from worker.tasks import cancel_all, first_of
from worker.urls import Guard
from worker.web.server import serve
from worker.webhooks import Defaults, Sender

log = structlog.get_logger()

DATABASE = f"{PREFIX}DATABASE_URL"
OK = 0
COLLECTED = (2_000, 10, 200)
"""When the collector looks, by generation: often, since it looks at all that came since then, and nobody is answered
meanwhile."""
TURN_S = 0.0005
LAST_BATCH_MOST = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """One process of the service, its store open and its first readings made; `serving` has it work."""

    view: View
    outbox: Outbox

    @property
    def services(self) -> tuple[tuple[str, Coroutine[Any, Any, None]], ...]:
        """What runs beside the requests, each of them until it is cancelled."""
        return (
            ("desk", self.view.desk.run()),
            ("heartbeats", self.view.heartbeats.run()),
            ("outbox", self.outbox.run()),
            ("upkeep", self.view.upkeep.run()),
        )


@asynccontextmanager
async def opened(
    settings: Settings,
    *,
    clock: Clock | None = None,
    store: Store | None = None,
    keys: str = SALAD_KEYS,
    pace: Pace | None = None,
    rng: random.Random | None = None,
) -> AsyncIterator[Dispatcher]:
    """The parts that these settings ask for; all that share a PostgreSQL go by its clock, ``clock`` being our own.

    Raises `ConfigError` for a database that cannot be used.
    """
    clock = CorrectedClock(clock or SystemClock())
    if store is None:
        with _configured():
            store = open_store(settings.serve.database_url.get_secret_value(), clock)
    sender = _sender(settings, clock, rng or random.Random())
    try:
        with _configured():
            await store.open()
        view = _view(settings, store, clock, keys, pace or Pace())
        with _configured():
            await view.upkeep.begin()
        yield Dispatcher(view, Outbox(store, sender, view.metrics, settings.webhook.budget))
    finally:
        await sender.aclose()
        await store.aclose()


@contextmanager
def _configured() -> Iterator[None]:
    """A database that cannot be used, or does not answer at the start, is a mistake of the configuration."""
    try:
        yield
    except StoreUnavailable as error:
        raise ConfigError((FieldError(DATABASE, f"the database does not answer: {error}"),)) from None
    except ConfigError as error:
        raise ConfigError(tuple(FieldError(one.field or DATABASE, one.message) for one in error.mistakes)) from None


def _sender(settings: Settings, clock: Clock, rng: random.Random) -> Sender:
    webhook = settings.webhook
    return Sender(
        Defaults.of(webhook, variable="DISPATCHER_WEBHOOK_SECRETS_FILE"),
        guard=Guard.from_setting(webhook.urls_allow_private, variable="DISPATCHER_URLS_ALLOW_PRIVATE"),
        clock=CorrectedClock(clock),
        rng=rng,
        timeout=webhook.timeout,
        budget=webhook.budget,
    )


def _view(settings: Settings, store: Store, clock: Clock, keys: str, pace: Pace) -> View:
    given = settings.rules
    rules, metrics = given.rules, Metrics()
    fleet = Fleet(clock, given.node_timeout)
    demands = Demands(fleet, asyncio.get_running_loop().time)
    fleet.on_moved(demands.moved)
    lookout = Lookout(store, demands, rules, clock, fleet.could)
    desk = Desk(store, fleet, demands, lookout, rules, given.lease, clock, metrics)
    heartbeats = Heartbeats(store, given.lease)
    metrics.observe(
        Observed(
            lambda: demands.waiting,
            lambda: sum(len(seat.asked.running) for seat in fleet.alive()),
            lambda: (len(alive := fleet.alive()), len(list(fleet)) - len(alive)),
            lambda: desk.polls,
        )
    )
    return View(
        settings=settings,
        access=Access(settings.access, _identities(settings.access, clock, keys)),
        store=store,
        fleet=fleet,
        demands=demands,
        desk=desk,
        heartbeats=heartbeats,
        losses=Losses(store, fleet, heartbeats, desk, metrics, given.max_attempts),
        upkeep=Upkeep(
            store, fleet, demands, desk, metrics, clock, rules, given.max_deliveries, uuid.uuid4().hex, pace=pace
        ),
        metrics=metrics,
        clock=clock,
        counts=Counts(given.max_attempts, given.max_deliveries),
    )


def _identities(access: AccessSettings, clock: Clock, keys: str) -> Identities | None:
    if not access.identity or access.salad_organization_id is None:
        return None
    return IdentityTokens(access.salad_organization_id, access.salad_container_group_ids, clock, keys=keys)


@asynccontextmanager
async def serving(
    dispatcher: Dispatcher, host: str, port: int, *, on_listening: Callable[[int], None] = lambda _: None
) -> AsyncIterator[asyncio.Future[None]]:
    """Serve for the time of the block. What is given raises as soon as a part of the service does.

    In the end held requests are answered with nothing, the last batch is brought through, running answers get their
    grace, and only then the rest stops.
    """
    app = create_app(dispatcher.view)
    http = asyncio.create_task(
        serve(app, host, port, on_listening=on_listening, prefix=PREFIX, protocol="httptools"), name="http"
    )
    services = {asyncio.create_task(work, name=name) for name, work in dispatcher.services}
    broken = asyncio.ensure_future(_first_failure({http, *services}))
    try:
        yield broken
    finally:
        dispatcher.view.upkeep.health.stopping = True
        dispatcher.view.desk.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_BATCH_MOST.total_seconds()):
                await first_of(dispatcher.view.desk.stopped(), _ended(broken))
        await cancel_all({http})
        await cancel_all(services)
        await cancel_all({broken})


async def _first_failure(tasks: set[asyncio.Task[None]]) -> None:
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def _ended(broken: asyncio.Future[None]) -> None:
    await asyncio.wait({broken})


async def _until(broken: asyncio.Future[None]) -> None:
    await asyncio.shield(broken)


def _settle_interpreter() -> None:
    """Have the collector pass over what is there for good: looking through it takes a tenth of a second each time, in
    which no node is answered. And have threads take turns often: each statement in a thread of the database needs
    several turns, and the loop's are long."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTED)
    sys.setswitchinterval(TURN_S)


async def run(
    settings: Settings, *, on_listening: Callable[[int], None] = lambda _: None, stop_at_once: Callable[[], None]
) -> int:
    """Serve until SIGTERM or SIGINT; a second one calls ``stop_at_once``. The exit code."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def signalled() -> None:
        if stop.is_set():
            stop_at_once()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    try:
        async with (
            opened(settings) as dispatcher,
            serving(dispatcher, settings.host, settings.serve.port, on_listening=on_listening) as broken,
        ):
            _settle_interpreter()
            await first_of(stop.wait(), _until(broken))
            log.info("stopping")
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    return OK
