"""The composition root: the only file that picks concrete drivers and puts the parts together."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from worker import log, recovery
from worker.api.app import View, create_app
from worker.api.push import push
from worker.blackbox import BlackBox, Seen, place_of
from worker.blocked import Tenure
from worker.clock import CorrectedClock, SystemClock
from worker.dependencies import Dependency
from worker.desk import Desk, Elsewhere
from worker.desk import Rules as DeskRules
from worker.desk.aimed import Aimed, AimedQueue, Ask
from worker.desk.stores import SHARED
from worker.engines import open_engine
from worker.engines.base import Engine, Process
from worker.engines.child import Reaper, container_memory, open_process, prepare_as_init
from worker.errors import QueueUnavailable, WorkerError
from worker.intake import Intake
from worker.memory import give_back_when_idle
from worker.metrics import Metrics
from worker.models.cache import Cache
from worker.models.none import NoCache
from worker.outfit import Opened, find_node, outfit, sender_of
from worker.platforms import open_platform
from worker.platforms.cost import DeletionCost
from worker.pressure import Pressure
from worker.queues import open_desk_queue, open_queue, submittable
from worker.queues.base import Queue, Recalling
from worker.queues.memory import MemoryQueue
from worker.readiness import readiness
from worker.settings import Settings
from worker.settings.source import server_environment
from worker.signals import Signals
from worker.statistics import Statistics
from worker.status import Status
from worker.storage import Storages, account_of, open_storage
from worker.supervisor import ExitCode, Supervisor
from worker.tasks import first_of
from worker.tools import Tools
from worker.urls import Guard
from worker.view import open_view
from worker.watch import Watch
from worker.web.inside import ask
from worker.web.server import serve

PURGE_EVERY_S = 300.0


PARTS = frozenset({"engine", "queue", "storage"})


@asynccontextmanager
async def opened(settings: Settings, parts: Iterable[str] = PARTS) -> AsyncIterator[Opened]:
    """Open the drivers that are asked for, without any I/O of theirs, and close them in reverse order."""
    wanted = frozenset(parts)
    clock = CorrectedClock(SystemClock())
    guard = Guard.from_setting(settings.node.urls_allow_private)
    platform = open_platform(settings)
    engine: Engine | None = None
    process: Process | None = None
    queue: Queue | None = None
    storage: Storages | None = None
    async with AsyncExitStack() as stack:
        stack.push_async_callback(platform.aclose)
        node = await find_node(settings, platform)
        if "storage" in wanted:
            client = await stack.enter_async_context(guard.client())
            account = account_of(settings, node.identity_token)
            storage = open_storage(
                settings.store, client=client, guard=guard, clock=clock, rng=random.Random(), account=account
            )
            stack.push_async_callback(storage.aclose)
        if "queue" in wanted:
            queue = open_queue(settings.queue, node, clock, salad=settings.salad)
            stack.push_async_callback(queue.aclose)
        if "engine" in wanted:
            process = open_process(settings.engine, server_environment(settings.engine.env))
            stack.push_async_callback(process.stop)
            engine = open_engine(settings.engine, settings.limits, process.log)
            stack.push_async_callback(engine.aclose)
        yield Opened(clock, guard, platform, node, engine, process, queue, storage)


async def run(
    settings: Settings,
    *,
    stop_at_once: Callable[[], None],
    on_listening: Callable[[int], None] = lambda port: None,
    signals: Signals | None = None,
    tenure: Tenure | None = None,
) -> ExitCode:
    """The daemon, from open drivers to the end of the drain and of the server that it started.

    With ``tenure``, which answers HTTP, it may be run again where it raises a mistake before it was ready once.
    """
    prepare_as_init()
    async with opened(settings) as parts, AsyncExitStack() as stack:
        await _usable(parts.queue)
        return await (await composed(settings, parts, stack, stop_at_once, on_listening, signals, tenure)).run()


async def composed(
    settings: Settings,
    parts: Opened,
    stack: AsyncExitStack,
    stop_at_once: Callable[[], None],
    on_listening: Callable[[int], None],
    signals: Signals | None = None,
    tenure: Tenure | None = None,
) -> Supervisor:
    """Put everything together; what it opens is closed by the stack."""
    parts = _aimed(parts, stack)
    me = parts.node.identity
    log.identify(worker=me.id, machine=me.machine, instance=me.instance, **parts.platform.labels())
    process, queue, storage = parts.process, parts.queue, parts.storage
    if process is None or queue is None or storage is None:
        raise ValueError("the daemon needs every part")
    status = tenure.status if tenure is not None else Status()
    box = await _blackbox(settings, parts, stack)
    made = await outfit(settings, parts, stack, status, box.vitals)
    tools, models, drain, metrics = made.tools, made.models, made.tools.drain, made.tools.bench.metrics
    watch = _watch(tools, storage, queue, status)
    ready = await readiness(settings, parts, made, process, status, watch.apply)
    if box.cause is not None:
        metrics.previous_run(str(box.cause))
    desk = _desk(settings, parts, storage, tools, status, stack)
    box.watch(Seen(status, tools.live, process, metrics, restarts=lambda: ready.engine.restarts))
    shown = desk if settings.takes_http_jobs else None
    view = await open_view(settings, parts, made, status, shown, ready, stack)
    if isinstance(queue, Aimed):
        within = view if shown is desk else await open_view(settings, parts, made, status, desk, ready, stack)
        queue.serves(_within(within, settings), drain)
    services = {
        **ready.services,
        "models": lambda: _kept(models, tools),
        "watch": watch.run,
        "pressure": _pressure(settings, tools, process, ready.engine).run,
        "reaper": Reaper(process).run,
        "purge": lambda: _purge(storage, parts.clock),
        "blackbox": box.run,
        "statistics": Statistics(metrics.families, lambda: str(status.phase), tools.reporter.bill).run,
        "memory": lambda: give_back_when_idle(tools.live),
        "cost": DeletionCost(parts.platform, tools.live).run,
        "push": lambda: _pushed(settings.node.metrics_push_url, metrics, parts),
    }
    return Supervisor(
        status,
        drain,
        _intake(settings, tools, desk, status),
        services,
        lambda: _served(view, settings, on_listening, tenure),
        drain_timeout=settings.node.drain_timeout,
        stop_at_once=lambda: _all_at_once(process, box, stop_at_once),
        lasting={"desk": desk.run} if desk is not None else {},
        signals=signals,
        stays=tenure is not None,
        on_stopped=box.end,
        leave=parts.platform.reallocate if settings.engine.give_up == "reallocate" else None,
    )


def _aimed(parts: Opened, stack: AsyncExitStack) -> Opened:
    """The queue's jobs that are aimed at an endpoint are the desk's, where it has such."""
    if not isinstance(parts.queue, AimedQueue):
        return parts
    queue = Aimed(parts.queue, random.Random())
    stack.push_async_callback(queue.aclose)
    return replace(parts, queue=queue)


def _within(view: View, settings: Settings) -> Ask:
    """The endpoints for the queue's jobs, which need no key; they are built when the first one comes."""
    keyless = settings.http.model_copy(update={"api_key": None})
    app = functools.cache(lambda: create_app(view, keyless))
    return lambda path, body, headers, left: ask(app(), path, body, headers, left)


async def _blackbox(settings: Settings, parts: Opened, stack: AsyncExitStack) -> BlackBox:
    """What tells of the run before; the queue hears of the jobs that it held, where it can do something about them."""
    path = await asyncio.to_thread(place_of, settings, parts.node.identity)
    box = await stack.enter_async_context(await BlackBox.open(path, parts.node.identity, parts.clock))
    queue: object = parts.queue
    if box.vitals.previous is not None and isinstance(queue, Recalling):
        try:
            await queue.recall(box.vitals.previous)
        except QueueUnavailable as error:
            log.get().warning("queue_unavailable", error=error.message)
    return box


def _intake(settings: Settings, tools: Tools, desk: Desk | None, status: Status) -> Intake:
    """Over the configured queue, the desk's, or both."""
    lines = [tools] if settings.queue.kind != "none" else []
    lines += [desk.outfitted()] if desk is not None else []
    first, *beside = lines
    window, parked = settings.queue.window, settings.queue.parked
    return Intake(first, status, window=window, parked=parked, rng=random.Random(), beside=beside)


def _desk(
    settings: Settings, parts: Opened, storage: Storages, tools: Tools, status: Status, stack: AsyncExitStack
) -> Desk | None:
    """Where HTTP jobs are taken in, and what a queue aims at an endpoint; its queue is the worker's own where no other
    is configured."""
    if not settings.takes_http_jobs and not isinstance(parts.queue, Aimed):
        return None
    http, key = settings.http, settings.http.api_key
    if key is None and settings.takes_http_jobs:
        log.get().warning("http_jobs_open", message="no WORKER_API_KEY: whoever reaches the port may have jobs done")
    rules = DeskRules(
        settings.limits,
        http.max_pending,
        http.max_wait,
        http.timeout,
        http.cancel_on_disconnect,
        key.get_secret_value().encode() if key is not None else b"",
    )
    own = parts.queue
    if not isinstance(own, MemoryQueue):
        own = open_desk_queue(settings.queue, parts.node, parts.clock)
    sender = sender_of(settings, parts, stack, inline=settings.store.chosen not in SHARED)
    elsewhere = _elsewhere(settings, parts, storage, stack)
    return Desk(own, tools, status, rules, inline=storage.inline, notifier=sender, elsewhere=elsewhere)


def _elsewhere(settings: Settings, parts: Opened, storage: Storages, stack: AsyncExitStack) -> Elsewhere:
    """The submitting side of the configured queue, and the stores that tell of jobs of other replicas."""
    own: object = parts.queue
    producer = submittable(settings.queue, parts.queue, parts.clock, store=settings.store)
    if producer is not None and producer is not own:
        stack.push_async_callback(producer.aclose)
    return Elsewhere(producer, storage.archives)


async def _kept(models: Cache | NoCache, tools: Tools) -> None:
    """A service: the cache is tidied until the drain begins; then nothing is fetched that no job waits for."""
    await first_of(models.keep(), tools.drain.beginning())
    tools.orders.stop()
    models.drain()


async def _served(view: View, settings: Settings, on_listening: Callable[[int], None], tenure: Tenure | None) -> None:
    """A service: probes, status and metrics, where somebody listens already or on a socket of its own."""
    http = settings.http
    app = create_app(view, http)
    if tenure is not None:
        await tenure.front.showing(app)
    else:
        await serve(app, http.host, http.port, on_listening=on_listening)


def _watch(tools: Tools, storage: Storages, queue: Queue, status: Status) -> Watch:
    probes = {
        Dependency.STORAGE: storage.check,
        Dependency.QUEUE: queue.check,
        Dependency.DISK: tools.models.space,
    }
    return Watch(tools.dependencies, status, tools.gate, tools.bench.metrics, probes)


def _all_at_once(process: Process, box: BlackBox, stop: Callable[[], None]) -> None:
    process.stop_at_once()
    box.end(ExitCode.CLEAN)
    stop()


def _pressure(settings: Settings, tools: Tools, process: Process, service: recovery.EngineService) -> Pressure:
    most = settings.engine.memory_max or container_memory() * 9 // 10
    return Pressure(tools.gate, process, tools.bench.metrics, most, lives=lambda: service.restarts)


async def _usable(queue: Queue | None) -> None:
    """A queue that can never work ends the start; one that does not answer now may come back."""
    try:
        if queue is not None:
            await queue.check()
    except QueueUnavailable as error:
        log.get().warning("queue_unavailable", error=error.message)


async def _pushed(url: str | None, metrics: Metrics, parts: Opened) -> None:
    """A service where there is somewhere to push to."""
    if url is not None:
        await push(metrics, url, parts.node.identity, parts.clock)


async def _purge(storage: Storages, clock: CorrectedClock) -> None:
    """A service: deletes local images that are older than they may be; what cannot be deleted stops nothing."""
    while True:
        try:
            await storage.purge(clock.now())
        except WorkerError as error:
            log.get().warning("purge_failed", code=error.code, error=error.message)
        await asyncio.sleep(PURGE_EVERY_S)
