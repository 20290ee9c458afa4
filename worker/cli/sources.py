"""What `sd-worker check` finds of the models: their folder, its space, and whether the operator's sources answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable

from worker import http
from worker.cli.local import Finding, writable
from worker.clock import CorrectedClock, SystemClock
from worker.errors import AuthFailed, ConfigError, DownloadFailed, ModelForbidden, ModelNotFound, Owner, WorkerError
from worker.models.base import Wanted
from worker.models.find import Sources
from worker.models.folders import Folders, find_folders
from worker.models.hub import CredentialsRefused
from worker.models.measure import RESERVE, cap_of, free_bytes
from worker.models.open import links_of
from worker.settings.groups import Settings
from worker.urls import Guard

_GB = 1_000_000_000
NOBODY_HAS = "sd-worker-check.safetensors"
"""The name of a model that no source has: that one says so shows that it answers us."""

_ORDER = ("ok", "note", "FAILED")


async def models(settings: Settings) -> Finding:
    """The folder of models, and the space there. Raises `ConfigError` for a folder that does not show whose it is."""
    return await asyncio.to_thread(_folder, settings)


def _folder(settings: Settings) -> Finding:
    folders = find_folders(settings.engine.kind, settings.models.dir, settings.models.folders)
    if folders is None:
        return Finding.note("no folder of models here (WORKER_MODELS_DIR): jobs use what the server has")
    can_write = _writable(folders)
    if can_write.verdict == "FAILED":
        return can_write
    cap = cap_of(settings.models.max_size, settings.node.disk_size)
    free = free_bytes(folders.root)
    said = f"{folders.layout.family} models in {folders.root}, at most {cap / _GB:.1f} GB, {free / _GB:.1f} GB free"
    if free < RESERVE:
        return Finding.failed(f"{said}: less than the {RESERVE / _GB:.0f} GB that must stay free")
    return Finding.ok(said)


def in_image(settings: Settings) -> Finding | None:
    """Whether this user, who need not be the one who baked the models, can write them; None without a folder."""
    try:
        folders = find_folders(settings.engine.kind, settings.models.dir, settings.models.folders)
    except ConfigError as error:
        return Finding.failed(error.message)
    return None if folders is None else _writable(folders)


def _writable(folders: Folders) -> Finding:
    """Where files go, and where it is noted what they are."""
    found = [writable(folder) for folder in (folders.folder("checkpoint"), folders.ours)]
    return next((one for one in found if one.verdict == "FAILED"), found[0])


async def sources(settings: Settings) -> Finding:
    """Whether the templates and the catalogue answer; the worst verdict of all."""
    tries = [_template(settings, template) for template in settings.models.source]
    if settings.models.catalog:
        tries.append(_catalog(settings, settings.models.catalog))
    if not tries:
        return Finding.note("none of the operator's (WORKER_MODELS_SOURCE, WORKER_MODELS_CATALOG)")
    found = await asyncio.gather(*tries)
    worst = max((one.verdict for one in found), key=_ORDER.index)
    return Finding(worst, "; ".join(one.text for one in found))


async def _template(settings: Settings, template: str) -> Finding:
    """Whether one source answers, by asking it for a model that it does not have."""
    name = http.shown(template)

    async def ask(finder: Sources) -> Finding:
        locations = finder.locations(Wanted("checkpoint", NOBODY_HAS, owner=Owner.OPERATOR))
        try:
            await anext(locations, None)
        except ModelNotFound:
            pass
        except CredentialsRefused as error:
            return Finding.failed(f"{name}: {error.message}")
        except (AuthFailed, ModelForbidden):
            return Finding.note(f"{name} answers 403 for what it has not, as S3 does to who may not list the bucket")
        finally:
            if isinstance(locations, AsyncGenerator):
                await locations.aclose()
        return Finding.ok(f"{name} answers")

    return await _asked(settings, name, ask, source=(template,), catalog=None)


async def _catalog(settings: Settings, catalog: str) -> Finding:
    name = http.shown(catalog) if "://" in catalog else catalog

    async def ask(finder: Sources) -> Finding:
        index = await finder.catalogued()
        return Finding.ok(f"{name} lists {len(index.items)} models")

    return await _asked(settings, name, ask)


async def _asked(
    settings: Settings, name: str, ask: Callable[[Sources], Awaitable[Finding]], **changed: object
) -> Finding:
    clock = CorrectedClock(SystemClock())
    links = links_of(settings, clock)
    finder = Sources(
        settings.models.model_copy(update=changed),
        guard=Guard.from_setting(settings.node.urls_allow_private),
        clock=clock,
        rng=random.Random(),
        link_s3=links.link,
    )
    try:
        return await ask(finder)
    except DownloadFailed as error:
        return Finding.failed(error.message)
    except WorkerError as error:
        return Finding.failed(f"{name}: {error.message}")
    finally:
        await finder.aclose()
        await links.aclose()
