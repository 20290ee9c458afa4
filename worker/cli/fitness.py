"""What `sd-worker check` finds of this machine beside what a fit node must have."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from worker.cli.local import Finding
from worker.clock import CorrectedClock, SystemClock
from worker.documents import S3Documents
from worker.engines.base import Reach
from worker.errors import AuthFailed, DependencyFailed
from worker.fitness import Site, checks_of
from worker.fitness.tries import once
from worker.settings.groups import Settings
from worker.settings.node import FitnessSettings
from worker.urls import Guard


def is_asked(settings: Settings) -> bool:
    """Whether a node has to be fit."""
    return settings.fitness != FitnessSettings()


async def fitness(settings: Settings, opened: Callable[..., AbstractAsyncContextManager[Any]]) -> Finding:
    """Each figure by one try; the disk has a line of its own. Raises `ConfigError` and `AuthFailed`."""
    clock, storage = CorrectedClock(SystemClock()), settings.storage
    guard = Guard.from_setting(settings.node.urls_allow_private)
    documents = S3Documents(endpoint_url=storage.endpoint_url, region=storage.region, clock=clock)
    try:
        is_taken = settings.fitness.vram is not None and await _is_running(settings, opened)
        site = Site(guard, clock, "check", documents.fetch, is_taken=is_taken)
        return await _found(settings, site)
    finally:
        await documents.aclose()


async def _is_running(settings: Settings, opened: Callable[..., AbstractAsyncContextManager[Any]]) -> bool:
    """Whether a server holds some of the GPU's memory already."""
    async with opened(settings, {"engine"}) as parts:
        reach: Reach = (await parts.engine.look()).reach
        return reach is not Reach.PORT_CLOSED


async def _found(settings: Settings, site: Site) -> Finding:
    texts, is_fit = [], True
    for check in checks_of(settings, site):
        if check.name == "disk":
            continue
        try:
            figure = await once(check)
        except AuthFailed:
            raise
        except DependencyFailed as error:
            texts.append(f"{check.name} cannot be measured: {error.message}")
            is_fit = False
        else:
            texts.append(str(figure))
            is_fit = is_fit and figure.fit is not False
    if settings.fitness.step is not None:
        texts.append("step is measured by the worker's warm-up")
    return (Finding.ok if is_fit else Finding.failed)("; ".join(texts))
