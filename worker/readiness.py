"""The way to READY, put together: a fit node, its models, its server, and a first picture."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from worker import recovery, warmup
from worker.documents import S3Documents
from worker.engines.base import Output, Process, Work
from worker.fitness import Fitness, Site, open_fitness
from worker.job import Job
from worker.models.cache import Cache
from worker.models.declared import declared, is_declared
from worker.models.none import NoCache
from worker.outfit import Opened, Outfit
from worker.provisioning import Provisioning
from worker.settings import Settings
from worker.status import Status


@dataclass(frozen=True, slots=True)
class Readiness:
    """What has to end well before the node is called ready."""

    fitness: Fitness
    provisioning: Provisioning
    engine: recovery.EngineService

    @property
    def services(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Each to be run beside the others; what has to wait for another does."""
        return {
            "engine": self.engine.run,
            "provisioning": lambda: self.fitness.passed(self.provisioning.run),
        }

    def described(self) -> dict[str, Any]:
        """How far it is, for people."""
        return {"start": self.provisioning.described(), "fitness": self.fitness.described()}


async def readiness(
    settings: Settings,
    parts: Opened,
    made: Outfit,
    process: Process,
    status: Status,
    on_ready: Callable[[], None],
) -> Readiness:
    """With nothing begun. Raises `ConfigError` for a warm-up job that is none."""
    tools, warming = made.tools, settings.engine.warmup
    limits = tools.rules.limits
    named = warmup.canary_job(await warmup.written(warming), limits)
    job = await warmup.expanded(named, tools.workflows, limits)
    fitness = open_fitness(settings, _site(parts, made, process, job), status)
    provisioning = _provisioning(settings, made.models, status, made.documents)
    engine = _engine(settings, made, process, status, on_ready, fitness, provisioning, job)
    return Readiness(fitness, provisioning, engine)


def _site(parts: Opened, made: Outfit, process: Process, job: Job) -> Site:
    models = made.models
    site = Site(
        parts.guard,
        parts.clock,
        parts.node.identity.id,
        made.documents.fetch,
        warm_up=job,
        is_taken=not process.owned,
        measured=made.tools.reporter.speeds.downloaded,
    )
    return site.over(lambda: models.room) if isinstance(models, Cache) else site


def _provisioning(settings: Settings, models: Cache | NoCache, status: Status, documents: S3Documents) -> Provisioning:
    return Provisioning(
        models,
        status,
        (lambda: declared(settings, documents.fetch)) if is_declared(settings) else None,
        timeout=settings.models.start_timeout,
        rng=random.Random(),
        typed=models.typed,
        never=settings.engine.give_up == "never",
    )


def _engine(
    settings: Settings,
    made: Outfit,
    process: Process,
    status: Status,
    on_ready: Callable[[], None],
    fitness: Fitness,
    provisioning: Provisioning,
    job: Job,
) -> recovery.EngineService:
    engine, tools = settings.engine, made.tools

    def verified(work: Work, output: Output) -> None:
        tools.reporter.verified(work, output, typical=False)
        fitness.saw(work, output)

    return recovery.EngineService(
        tools.gate,
        warmup.Canary(job, tools.inputs, tools.models, engine.load_timeout + engine.job_timeout, on_verified=verified),
        process,
        status,
        tools.bench.metrics,
        patience=recovery.Patience(engine.start_timeout, engine.restarts, never=engine.give_up == "never"),
        warm_at_start=engine.warmup != "none",
        on_ready=on_ready,
        on_look=tools.reporter.looked,
        before_start=lambda: fitness.before_start(provisioning.before_engine),
        before_ready=provisioning.before_ready,
        after_warm_up=fitness.after_warm_up,
    )
