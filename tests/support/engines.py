"""An engine beside a simulated server, and jobs for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from pydantic import SecretStr

from worker.engines.base import Files, Output, ProgressReport, Work
from worker.engines.sdapi.engine import SdapiEngine
from worker.engines.sdapi.run import Pace
from worker.job import Job, Limits, parse
from worker.settings.groups import EngineSettings
from worker.simulators import Knobs, Simulator, running

ALL = ("sdnext", "sdnext-2023", "a1111", "a1111-1.7", "forge")
SDNEXT = ("sdnext", "sdnext-2023")
A1111 = ("a1111", "a1111-1.7", "forge")
SECOND = "sd_xl_base_1.0.safetensors"
"""A model that every simulator has, but does not load at its start."""

QUICK = Pace(poll_s=0.04, interrupt_s=0.02, quiet_s=1.0)
"""Tests wait in milliseconds where a worker waits in seconds."""


def job_of(document: dict[str, Any], *, id: str = "job-1") -> Job:
    return parse({"id": id, **document}, fallback_id=id, limits=Limits())


def small(prompt: str = "a cat", **fields: Any) -> dict[str, Any]:
    """A job document with a small native body."""
    return {"request": {"prompt": prompt, "width": 64, "height": 64, "steps": 3, "seed": 7, **fields}}


@dataclass
class Bench:
    """A server and the engine that drives it."""

    sim: Simulator
    engine: SdapiEngine
    reports: list[ProgressReport] = field(default_factory=list)

    async def busy(self) -> bool:
        return (await self.engine.look()).busy

    async def admit(self, document: dict[str, Any] | None = None, **job: Any) -> Work:
        return await self.engine.admit(job_of({**(document or small()), **job}))

    async def make(self, document: dict[str, Any] | None = None, *, fresh: bool = False, **job: Any) -> Output:
        """Admit and generate."""
        return await self.run(await self.admit(document, **job), fresh=fresh)

    async def run(self, work: Work, files: Files | None = None, *, fresh: bool = False) -> Output:
        return await self.engine.generate(work, files or Files(), self.reports.append, fresh=fresh)


def settings_for(url: str, **changes: Any) -> EngineSettings:
    return EngineSettings(url=url, load_timeout=timedelta(seconds=20), stall_timeout=timedelta(seconds=20)).model_copy(
        update=changes
    )


@asynccontextmanager
async def bench(
    dialect: str,
    knobs: Knobs | None = None,
    *,
    prepare: bool = True,
    settings: dict[str, Any] | None = None,
    limits: Limits | None = None,
    pace: Pace = QUICK,
    **server: Any,
) -> AsyncIterator[Bench]:
    """A running simulator and an engine on it; ``settings`` change the engine's, ``server`` goes to the simulator."""
    async with running(dialect, knobs, **server) as sim:
        changes = dict(settings or {})
        if isinstance(changes.get("password"), str):
            changes["password"] = SecretStr(changes["password"])
        engine = SdapiEngine(settings_for(changes.pop("url", sim.url), **changes), limits or Limits(), pace)
        try:
            if prepare:
                await engine.prepare()
            yield Bench(sim, engine)
        finally:
            await engine.aclose()
