"""Puts the cache together from the settings."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

import structlog

from worker.clock import CorrectedClock
from worker.models.base import Fetcher, Finder, Loaded
from worker.models.cache import Cache
from worker.models.carrier import Carrier
from worker.models.disk import Disk
from worker.models.download import Downloads
from worker.models.find import Sources
from worker.models.folders import Folders, find_folders
from worker.models.measure import cap_of
from worker.models.none import NoCache
from worker.models.room import Tally
from worker.models.s3source import S3Links
from worker.models.taking import Parts
from worker.rates import Speeds
from worker.settings.groups import Settings
from worker.urls import Guard

log = structlog.get_logger()


async def open_cache(
    settings: Settings,
    server: Loaded,
    tally: Tally,
    *,
    guard: Guard,
    clock: CorrectedClock,
    rng: random.Random,
    measured: Speeds | None = None,
) -> Cache | NoCache:
    """The cache of the server's folder of models, or none where there is no such folder; close it with ``aclose``.

    ``server`` tells what the image server holds and has it let go; ``measured`` learns how fast files come. Raises
    `ConfigError` for a folder that does not show whose it is, or that another worker has.
    """
    models = settings.models
    folders = await asyncio.to_thread(find_folders, settings.engine.kind, models.dir, models.folders)
    if folders is None:
        log.info("models_not_kept", reason="no folder of models")
        return NoCache()
    async with AsyncExitStack() as opening:
        links = links_of(settings, clock)
        finder = Sources(models, guard=guard, clock=clock, rng=rng, link_s3=links.link)
        opening.push_async_callback(finder.aclose)
        fetcher = Downloads(models, guard, clock=clock, rng=rng, s3=links)
        opening.push_async_callback(fetcher.aclose)
        return await cache_of(settings, folders, finder, fetcher, server, tally, opening, measured)


async def cache_of(
    settings: Settings,
    folders: Folders,
    finder: Finder,
    fetcher: Fetcher,
    server: Loaded,
    tally: Tally,
    closing: AsyncExitStack,
    measured: Speeds | None = None,
) -> Cache:
    """The cache over these parts; closing it closes what the stack holds by then. Raises `ConfigError`."""
    max_size, disk_size = settings.models.max_size, settings.node.disk_size
    also = (settings.store.directory,) if settings.store.chosen == "directory" else ()
    disk = await Disk.open(folders, also=also)
    closing.push_async_callback(disk.aclose)
    carrier = Carrier(
        disk,
        finder,
        fetcher,
        server,
        tally,
        cap=lambda: disk.cap(max_size, disk_size),
        ceiling=cap_of(max_size, disk_size),
        measured=measured,
    )
    await carrier.resume()
    return Cache(Parts(disk, finder, carrier, tally), closing.pop_all().aclose)


def links_of(settings: Settings, clock: CorrectedClock) -> S3Links:
    """Signs links to ``s3://`` sources with the models' credentials, else by the standard chain; to be closed."""
    models, storage = settings.models, settings.storage
    secret = models.s3_secret_access_key
    return S3Links(
        endpoint_url=models.s3_endpoint_url or storage.endpoint_url,
        region=storage.region,
        clock=clock,
        credentials=(models.s3_access_key_id, secret.get_secret_value())
        if models.s3_access_key_id is not None and secret is not None
        else None,
    )
