"""A Fooocus engine beside a simulated server, and jobs for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pybase64
from PIL import Image
from pydantic import SecretStr

from tests.support.engines import job_of, settings_for
from tests.support.pictures import encoded
from worker.engines.base import Files, NoLog, Output, ProgressReport, ServerLog, Work
from worker.engines.fooocus.engine import FooocusEngine
from worker.engines.fooocus.inventory import Inventory, inventory_of
from worker.engines.fooocus.run import Pace
from worker.job import Limits
from worker.simulators.fooocus import DEFAULT_LORAS, DEFAULT_MODELS, VERSIONS, Fooocus, Knobs, running
from worker.simulators.fooocus.catalogue import STYLES
from worker.simulators.fooocus.schema import openapi

ALL = ("0.4.1.1", "0.5")
OLD, NEW = ALL
DEFAULT = "juggernautXL_v8Rundiffusion.safetensors"
SECOND = "sd_xl_base_1.0.safetensors"

QUICK = Pace(poll_s=0.02, stop_s=0.02, quiet_s=1.0, settle_s=0.3, dead_s=0.3, full_s=0.02)
"""Tests wait in milliseconds where a worker waits in seconds."""


def small(prompt: str = "a cat", *, steps: int = 3, **fields: Any) -> dict[str, Any]:
    """A job document with a small native body."""
    advanced = {"overwrite_step": steps, **fields.pop("advanced_params", {})}
    body = {"prompt": prompt, "aspect_ratios_selection": "64*64", "image_seed": 7, "loras": [], "style_selections": []}
    return {"request": {**body, "advanced_params": advanced, **fields}}


def image(shown: Image.Image) -> str:
    """A picture as base64, as jobs hold it."""
    return pybase64.b64encode(encoded(shown)).decode("ascii")


def offered(version: str, models: Sequence[str] = DEFAULT_MODELS, loras: Sequence[str] = DEFAULT_LORAS) -> Inventory:
    """What the simulated server of a version offers, read as the driver reads it, without any server."""
    series = VERSIONS[version]
    gets = ("/v1/generation/job-history", "/v1/engines/clean_vram") if series == "0.5" else ()
    listed = {"model_filenames": list(models), "lora_filenames": list(loras)}
    found = inventory_of(openapi(series, gets), listed, list(STYLES))
    assert found is not None
    return found


@dataclass
class Bench:
    """A server and the engine that drives it."""

    sim: Fooocus
    engine: FooocusEngine
    reports: list[ProgressReport] = field(default_factory=list)

    @property
    def submitted(self) -> int:
        """Submissions that reached the server."""
        return sum(n for path, n in self.sim.stats.requests.items() if path.startswith("POST") and "stop" not in path)

    async def admit(self, document: dict[str, Any] | None = None, **job: Any) -> Work:
        return await self.engine.admit(job_of({**(document or small()), **job}))

    async def make(
        self, document: dict[str, Any] | None = None, *, files: Files | None = None, fresh: bool = False, **job: Any
    ) -> Output:
        """Admit and generate."""
        return await self.run(await self.admit(document, **job), files, fresh=fresh)

    async def run(self, work: Work, files: Files | None = None, *, fresh: bool = False) -> Output:
        return await self.engine.generate(work, files or Files(), self.reports.append, fresh=fresh)

    async def sampling(self) -> bool:
        """Whether a job is among its steps."""
        return any(job.progress >= 15 for job in self.sim.machine.queue)


@asynccontextmanager
async def bench(
    version: str,
    knobs: Knobs | None = None,
    *,
    prepare: bool = True,
    settings: dict[str, Any] | None = None,
    limits: Limits | None = None,
    pace: Pace = QUICK,
    log: ServerLog | None = None,
    deaf: bool = False,
    folders: Sequence[Path] = (),
    **server: Any,
) -> AsyncIterator[Bench]:
    """A running simulator and an engine on it, which reads its log unless ``deaf``."""
    async with running(version, knobs, **server) as sim:
        changes = dict(settings or {})
        if isinstance(changes.get("api_key"), str):
            changes["api_key"] = SecretStr(changes["api_key"])
        read = NoLog() if deaf else log or sim.journal
        wanted = settings_for(changes.pop("url", sim.url), kind="fooocus", **changes)
        engine = FooocusEngine(wanted, limits or Limits(), read, pace, folders)
        try:
            if prepare:
                await engine.prepare()
            yield Bench(sim, engine)
        finally:
            await engine.aclose()
