"""Finders of models over real servers: two mirrors of the operator's, and both hubs."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.hubs import File, Hubs, Repo, Version, hubs, sha256_of
from tests.support.made import safetensors
from tests.support.model_host import ModelHost
from tests.support.receiver import Answer
from worker.clock import SystemClock
from worker.errors import (
    WorkerError,
)
from worker.models.base import Location, Wanted
from worker.models.find import Sources
from worker.retry import Policy
from worker.settings.models import ModelsSettings
from worker.urls import Guard

BODY = safetensors(b"the model" * 100)
OTHER = b"another one"
SHA = sha256_of(BODY)
AT_ONCE = Policy(attempts=3, first=timedelta(0), most=timedelta(0))
HF = "hf://org/repo/m.safetensors"
CDN = "https://cdn.test/m.safetensors"


class Sites:
    """Two mirrors of the operator's, both hubs, and finders over them."""

    def __init__(self, stack: AsyncExitStack, both: Hubs, mirror: ModelHost, second: ModelHost, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self.hubs = both
        self.mirror = mirror
        self.second = second
        both.hugging_face.repos["org/repo"] = Repo({"m.safetensors": BODY})
        both.civitai.versions[12] = Version([File(3, BODY, "m.safetensors", primary=True)])
        for host in (mirror, second):
            host.otherwise = Answer(404)

    @property
    def template(self) -> str:
        return self.mirror.url("/{kind}/{name}")

    def mirrored(self, *, second: bool = True) -> tuple[str, ...]:
        return (self.template, self.second.url("/{kind}/{name}")) if second else (self.template,)

    def catalog(self, *items: dict[str, Any]) -> str:
        path = self._folder / "catalog.json"
        path.write_text(json.dumps(items))
        return str(path)

    def finder(self, *, guard: Guard | None = None, link_s3: Any = None, **settings: Any) -> Sources:
        sources = Sources(
            ModelsSettings(**settings),
            guard=guard or Guard(private=True),
            clock=SystemClock(),
            rng=random.Random(1),
            link_s3=link_s3,
            hugging_face_url=self.hubs.hugging_face.url(""),
            civitai_url=self.hubs.civitai.url(""),
            policy=AT_ONCE,
        )
        self._stack.push_async_callback(sources.aclose)
        return sources


@asynccontextmanager
async def running_sites(folder: Path) -> AsyncIterator[Sites]:
    """All servers, and room in this folder for a catalogue."""
    async with AsyncExitStack() as stack:
        both = await stack.enter_async_context(hubs())
        mirror, second = [await stack.enter_async_context(ModelHost()) for _ in range(2)]
        yield Sites(stack, both, mirror, second, folder)


async def found(sources: Sources, wanted: Wanted) -> list[Location]:
    return [one async for one in sources.locations(wanted)]


async def urls(sources: Sources, wanted: Wanted) -> list[str]:
    """Where it is found, in order, without the queries of signed links."""
    return [one.url.partition("?")[0] for one in await found(sources, wanted)]


async def refused(sources: Sources, wanted: Wanted) -> WorkerError:
    with pytest.raises(WorkerError) as error:
        await found(sources, wanted)
    return error.value
