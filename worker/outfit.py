"""The collaborators of jobs, put together from the settings and the open drivers."""

from __future__ import annotations

import asyncio
import random
import secrets
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta

from worker import __version__
from worker.clock import CorrectedClock
from worker.dependencies import Dependencies
from worker.documents import S3Documents
from worker.drain import Drain
from worker.engines.base import Engine, Process
from worker.gate import Gate, Letting
from worker.images import Encoding
from worker.inputs import Inputs
from worker.live import Live
from worker.lookahead import Pace
from worker.metrics import IMAGES, Metrics, Observed
from worker.models.cache import Cache
from worker.models.none import NoCache
from worker.models.open import open_cache
from worker.node import Gpu, Identity, Report, Vitals, find_gpu
from worker.orders import Duties
from worker.patience import Patience
from worker.platforms.base import Platform
from worker.queues.base import Queue
from worker.rates import Speeds
from worker.report import Bill, Reporter
from worker.result import WorkerResult
from worker.settings import Settings
from worker.settlement import Bench
from worker.status import Phase, Status
from worker.storage import Storages
from worker.tasks import Budget
from worker.tools import Rules, Tools
from worker.urls import Guard
from worker.webhooks import Defaults, Sender
from worker.workflows import Workflows
from worker.workflows import load as load_workflows
from worker.workflows import tell as tell_workflows


class ThisNode:
    """The node as its platform knows it; it has nothing to report before it is told by whom."""

    def __init__(self, identity: Identity, platform: Platform) -> None:
        self.identity = identity
        self.reported: Callable[[], Report] = Report
        self._platform = platform

    async def report(self) -> Report:
        """As `Node.report`."""
        return self.reported()

    async def identity_token(self, refused: str | None = None) -> str | None:
        """As `Node.identity_token`."""
        return await self._platform.identity_token(refused)


async def find_node(settings: Settings, platform: Platform) -> ThisNode:
    """Who this node is, as far as it can be found out."""
    return ThisNode(identity_of(settings, platform, await find_gpu()), platform)


def identity_of(settings: Settings, platform: Platform, gpu: Gpu) -> Identity:
    """Who this node is, and what runs in it."""
    host = socket.gethostname()
    found = Identity(
        id=settings.node.node_id or host,
        machine=host,
        version=__version__,
        gpu=gpu.name,
        instance=secrets.token_hex(8),
        vram_gb=gpu.vram_gb,
    )
    return platform.identity(found)


ENGINE_REASONS = frozenset({"starting", "engine"})
"""Why the gate is closed while nobody knows what state the server is in."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The parts that touch the world, ready to be used; what was not asked for is None."""

    clock: CorrectedClock
    guard: Guard
    platform: Platform
    node: ThisNode
    engine: Engine | None = None
    process: Process | None = None
    queue: Queue | None = None
    storage: Storages | None = None


@dataclass(frozen=True, slots=True)
class Outfit:
    """The tools of jobs, and what only the daemon itself needs beside them."""

    tools: Tools
    models: Cache | NoCache
    documents: S3Documents


async def outfit(
    settings: Settings, parts: Opened, stack: AsyncExitStack, status: Status, vitals: Vitals | None = None
) -> Outfit:
    """What it opens is closed by the stack; ``vitals`` are reported as they are then.

    Raises `ConfigError` for a folder of models that cannot be used.
    """
    vitals = vitals or Vitals()
    engine, queue, storage = parts.engine, parts.queue, parts.storage
    if engine is None or queue is None or storage is None:
        raise ValueError("the daemon needs every part")
    live, pace, gate, dependencies = Live(), Pace(), Gate(engine), Dependencies()
    drain, budget = Drain(live, pace), Budget(settings.storage.unpublished_max)
    models: Cache | NoCache = NoCache()
    measured = Speeds()
    metrics = _metrics(status, live, budget, parts.clock, lambda: models, measured, vitals)
    reporter = Reporter(
        live,
        metrics,
        shelf=lambda: models if isinstance(models, Cache) else None,
        fit=lambda: ENGINE_REASONS.isdisjoint(gate.reasons),
        vram_gb=parts.node.identity.vram_gb,
        speeds=measured,
        vitals=vitals,
        bill=_billing(settings.node.price_per_hour, metrics),
    )
    parts.node.reported = reporter.report
    models = await open_cache(
        settings,
        Letting(gate, reporter.forget),
        metrics,
        guard=parts.guard,
        clock=parts.clock,
        rng=random.Random(),
        measured=measured,
    )
    stack.push_async_callback(models.aclose)
    orders = Duties(models, live, drain, metrics, models.typed)
    stack.push_async_callback(orders.aclose)
    documents = _documents(settings, parts, stack)
    tools = Tools(
        bench=_bench(settings, parts, queue, storage, metrics, drain, stack),
        gate=gate,
        engine=engine,
        inputs=_inputs(settings, parts, documents, stack),
        models=models,
        dependencies=dependencies,
        patience=Patience(storage, dependencies),
        live=live,
        orders=orders,
        reporter=reporter,
        drain=drain,
        pace=pace,
        budget=budget,
        rules=_rules(settings),
        workflows=await _workflows(settings),
    )
    return Outfit(tools, models, documents)


def _billing(price: float | None, metrics: Metrics) -> Callable[[], Bill | None]:
    """What the node costs from now on, whatever it does."""
    loop = asyncio.get_running_loop()
    began = loop.time()

    def bill() -> Bill | None:
        if price is None:
            return None
        return Bill(price, loop.time() - began, metrics.busy_s, int(metrics.value(IMAGES)))

    return bill


def _bench(
    settings: Settings,
    parts: Opened,
    queue: Queue,
    storage: Storages,
    metrics: Metrics,
    drain: Drain,
    stack: AsyncExitStack,
) -> Bench:
    return Bench(
        queue=queue,
        stores=storage,
        sender=sender_of(settings, parts, stack, inline=settings.store.chosen == "inline"),
        metrics=metrics,
        clock=parts.clock,
        identity=parts.node.identity,
        rng=random.Random(),
        drain=drain,
    )


def _metrics(
    status: Status,
    live: Live,
    budget: Budget,
    clock: CorrectedClock,
    models: Callable[[], Cache | NoCache],
    measured: Speeds,
    vitals: Vitals,
) -> Metrics:
    return Metrics(
        Observed(
            phases=tuple(map(str, Phase)),
            phase=lambda: str(status.phase),
            jobs_held=lambda: len(live),
            jobs_parked=lambda: live.parked,
            clock_offset_s=lambda: clock.offset / timedelta(seconds=1),
            unpublished_bytes=lambda: budget.taken,
            models_bytes=lambda: models().bytes,
            models_cap_bytes=lambda: models().cap,
            rates=lambda: measured.rates().model_dump(exclude_none=True),
            vitals=vitals.gauges,
        )
    )


async def _workflows(settings: Settings) -> Workflows:
    """The operator's own, whatever became of some of them."""
    workflows = await load_workflows(settings.http.workflows_dir)
    tell_workflows(workflows)
    return workflows


def _rules(settings: Settings) -> Rules:
    output = settings.output
    return Rules(
        limits=settings.limits,
        encoding=Encoding(format=output.format, quality=output.quality, metadata=output.metadata),
        flat=output.flat,
        job_timeout=settings.engine.job_timeout,
        upload_concurrency=settings.storage.upload_concurrency,
        models_max_wait=settings.models.max_wait,
        price_per_hour=settings.node.price_per_hour,
    )


def sender_of(settings: Settings, parts: Opened, stack: AsyncExitStack, *, inline: bool) -> Sender:
    """Who sends webhooks; ``inline``: results hold what was made where a job names no storage."""
    identity = parts.node.identity
    sender = Sender(
        Defaults.of(settings.webhook),
        guard=parts.guard,
        clock=parts.clock,
        rng=random.Random(),
        timeout=settings.webhook.timeout,
        budget=settings.webhook.budget,
        inline=inline,
        worker=WorkerResult(id=identity.id, machine=identity.machine, gpu=identity.gpu, version=identity.version),
    )
    stack.push_async_callback(sender.aclose)
    return sender


def _documents(settings: Settings, parts: Opened, stack: AsyncExitStack) -> S3Documents:
    store = settings.storage
    documents = S3Documents(endpoint_url=store.endpoint_url, region=store.region, clock=parts.clock)
    stack.push_async_callback(documents.aclose)
    return documents


def _inputs(settings: Settings, parts: Opened, documents: S3Documents, stack: AsyncExitStack) -> Inputs:
    inputs = Inputs(
        parts.guard,
        clock=parts.clock,
        rng=random.Random(),
        max_bytes=settings.http.max_body,
        fetch_s3=documents.fetch,
    )
    stack.push_async_callback(inputs.aclose)
    return inputs
