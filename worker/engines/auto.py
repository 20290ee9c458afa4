"""Finding out which server answers, and driving that one from then on."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import structlog

from worker.engines.answer import Answer
from worker.engines.base import Engine, EngineState, Files, NativeCall, Output, Progress, Reach, Work
from worker.engines.client import Client
from worker.errors import AuthFailed, EngineCrashed
from worker.job import Job
from worker.mentions import Mention, Place
from worker.settings.groups import EngineKind, EngineSettings

log = structlog.get_logger(__name__)

PROBES = ("/system_stats", "/v1/engines/all-models", "/sdapi/v1/samplers")
"""One route of each family that no other has, and that needs no model."""


def kind_of(path: str, body: Any) -> EngineKind | None:
    """The family whose answer this is; None for one that only happens to answer there."""
    match path, body:
        case "/system_stats", {"system": {"comfyui_version": str()}} | {"system": {}, "devices": [*_]}:
            return "comfyui"
        case "/v1/engines/all-models", {"model_filenames": [*_]}:
            return "fooocus"
        case "/sdapi/v1/samplers", [{"name": str()}, *_]:
            return "a1111"
        case _:
            return None


class AutoEngine:
    """No server yet; once one was recognised, its driver."""

    def __init__(self, settings: EngineSettings, opened: Callable[[EngineKind, EngineSettings], Engine]) -> None:
        self._candidates = [settings.model_copy(update={"url": url}) for url in settings.addresses]
        self._opened = opened
        self._driver: Engine | None = None

    @property
    def name(self) -> str:
        """``auto`` until a server was recognised."""
        return "auto" if self._driver is None else self._driver.name

    async def look(self) -> EngineState:
        if self._driver is None:
            state = await self._search()
            if self._driver is None:
                return state
        return await self._driver.look()

    async def _search(self) -> EngineState:
        """Ask every address; what was found becomes the driver."""
        places = ", ".join(settings.address for settings in self._candidates)
        state = EngineState(Reach.PORT_CLOSED, detail=f"nothing listens at {places}")
        for settings in self._candidates:
            client = Client(settings)
            try:
                if not await client.locate():
                    continue
                kind = await _recognise(client)
            except EngineCrashed as error:
                state = EngineState(Reach.ROUTES_MISSING, detail=error.message)
                continue
            finally:
                await client.aclose()
            if kind is not None:
                self._driver = self._opened(kind, settings)
                log.info("engine_found", engine=kind, url=settings.address)
                return state
            state = EngineState(Reach.ROUTES_MISSING, detail=f"no known server answers at {settings.address}")
        return state

    def _known(self) -> Engine:
        if self._driver is None:
            raise EngineCrashed("no image server was found yet")
        return self._driver

    async def prepare(self) -> None:
        if self._driver is None:
            await self._search()
        await self._known().prepare()

    async def admit(self, job: Job) -> Work:
        return await self._known().admit(job)

    async def generate(self, work: Work, files: Files, on_progress: Progress, *, fresh: bool = False) -> Output:
        return await self._known().generate(work, files, on_progress, fresh=fresh)

    async def mentions(self, job: Job) -> tuple[Mention, ...]:
        return await self._known().mentions(job)

    async def loaded(self) -> frozenset[Place]:
        return frozenset() if self._driver is None else await self._driver.loaded()

    async def unload(self, places: Collection[Place]) -> None:
        await self._known().unload(places)

    async def relay(self, call: NativeCall) -> Answer:
        return await self._known().relay(call)

    async def free(self, everything: bool) -> None:
        await self._known().free(everything)

    async def aclose(self) -> None:
        if self._driver is not None:
            await self._driver.aclose()


async def _recognise(client: Client) -> EngineKind | None:
    for path in PROBES:
        answer = await client.get(path)
        if answer.status in (401, 403) and path == PROBES[-1]:
            raise AuthFailed(f"the server answered {answer.status}")
        if (kind := _kind(path, answer)) is not None:
            return kind
    return None


def _kind(path: str, answer: Answer) -> EngineKind | None:
    return kind_of(path, answer.json) if answer.ok else None
