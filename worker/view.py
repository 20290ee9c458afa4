"""What HTTP sees of the worker: state for people and programs, and the means by which jobs are taken there."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from typing import Any

from worker.api import comfyui
from worker.api.app import View
from worker.api.fetches import Fetches
from worker.api.models import Shown
from worker.api.native import Native
from worker.api.relay import Relay
from worker.desk import Desk
from worker.models.cache import Cache
from worker.models.none import NoCache
from worker.outfit import Opened, Outfit, sender_of
from worker.readiness import Readiness
from worker.settings import Settings
from worker.status import Status
from worker.storage import open_buckets
from worker.storage.presigned import PresignedStorage
from worker.tools import Tools


async def open_view(
    settings: Settings,
    parts: Opened,
    made: Outfit,
    status: Status,
    desk: Desk | None,
    ready: Readiness,
    stack: AsyncExitStack,
) -> View:
    """The worker as HTTP sees it; without a desk it takes no jobs there and shows no models. Closed by the stack."""
    tools, models = made.tools, made.models
    return View(
        status,
        tools.live,
        tools.bench.metrics,
        parts.node.identity,
        ready.engine.described,
        lambda: {"platform": parts.platform.described(), **_extras(settings, tools, ready, models)},
        _shown(models, stack) if desk is not None else None,
        tools.reporter.report,
        _native(settings, desk, tools, stack),
        tools.workflows,
        await _prompts(settings, parts, stack) if desk is not None else None,
    )


def _extras(settings: Settings, tools: Tools, ready: Readiness, models: Cache | NoCache) -> dict[str, Any]:
    """What the status tells beside the worker's own state."""
    return {
        "queue": {"kind": settings.queue.kind},
        "storage": {"kind": settings.store.chosen},
        **ready.described(),
        "gate": {"open": tools.gate.is_open, "reasons": list(tools.gate.reasons)},
        "sources_paused": dict(models.paused),
        "paused": {str(name): code for name, code in tools.dependencies.paused.items()},
        "pace": {
            "prepare_s": tools.pace.prepare_s,
            "generate_s": tools.pace.generate_s,
            "settle_s": tools.pace.settle_s,
        },
    }


def _native(settings: Settings, desk: Desk | None, tools: Tools, stack: AsyncExitStack) -> Native | None:
    if desk is None:
        return None
    engine = settings.engine
    allowed = engine.options == "allow"
    relay = Relay(tools.engine, tools.gate, desk.rules, options_allowed=allowed, timeout=engine.job_timeout)
    stack.push_async_callback(relay.aclose)
    return Native(desk, tools.engine, tools.gate, engine.kind, relay)


def _shown(models: Cache | NoCache, stack: AsyncExitStack) -> Shown:
    """The cache as HTTP sees it; what is fetched for a caller ends before the cache does."""
    fetches = Fetches(models)
    stack.push_async_callback(fetches.aclose)
    return Shown(models, fetches)


async def _prompts(settings: Settings, parts: Opened, stack: AsyncExitStack) -> comfyui.Means | None:
    """How prompts in comfyui-api's language reach out, where there may be a ComfyUI."""
    if settings.engine.kind not in ("auto", comfyui.NAME):
        return None
    buckets = open_buckets(settings.store, clock=parts.clock, rng=random.Random())
    stack.push_async_callback(buckets.aclose)
    client = await stack.enter_async_context(parts.guard.client())
    uploads = comfyui.Uploads(buckets, PresignedStorage(client, parts.guard, rng=random.Random()))
    return comfyui.Means(parts.guard, sender_of(settings, parts, stack, inline=True), uploads)
