"""The ComfyUI engine beside a simulated server, and jobs for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.engines import job_of, settings_for
from worker.engines.base import Files, Output, ProgressReport, Work
from worker.engines.comfyui.engine import ComfyEngine
from worker.engines.comfyui.pace import Pace
from worker.job import Limits
from worker.simulators import comfyui
from worker.simulators.comfyui import ComfyUI, Knobs

CHECKPOINT = "base.safetensors"
SECOND = "second.safetensors"

QUICK = Pace(
    poll_s=0.04,
    tick_s=0.01,
    eager_s=0.005,
    eager_for_s=0.3,
    interrupt_s=0.03,
    quiet_s=0.6,
    dead_s=0.3,
    mute_s=0.5,
    submit_s=5.0,
    heartbeat_s=1.0,
    reconnect_s=0.02,
    free_s=0.1,
)
"""Tests wait in milliseconds where a worker waits in seconds."""


def graph(
    *, seed: int = 7, steps: int = 3, batch: int = 1, text: str = "a cat", checkpoint: str = CHECKPOINT, **save: Any
) -> dict[str, Any]:
    """A small text-to-image graph; ``save`` are inputs of its SaveImage node, number 9."""
    return {
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": seed,
                "steps": steps,
                "cfg": 7.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
                "model": ["4", 0],
                "positive": ["6", 0],
                "negative": ["7", 0],
                "latent_image": ["5", 0],
            },
        },
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": batch}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["4", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0], **save}},
    }


def plain(*, color: int = 0, size: int = 64, batch: int = 1) -> dict[str, Any]:
    """A graph without any model: one colour, saved."""
    inputs = {"width": size, "height": size, "batch_size": batch, "color": color}
    return {
        "1": {"class_type": "EmptyImage", "inputs": inputs},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["1", 0]}},
    }


def workflow(made: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A job document with a graph."""
    return {"workflow": dict(made) if made is not None else graph(**changes)}


def small(prompt: str = "a cat", **fields: Any) -> dict[str, Any]:
    """A job document with small portable parameters."""
    given = {"prompt": prompt, "width": 64, "height": 64, "steps": 3, "seed": 7, **fields}
    return {"params": given, "checkpoint": CHECKPOINT}


@dataclass
class Bench:
    """A server and the engine that drives it."""

    sim: ComfyUI
    engine: ComfyEngine
    reports: list[ProgressReport] = field(default_factory=list)
    keys: int = 0

    async def busy(self) -> bool:
        return (await self.engine.look()).busy

    async def admit(self, document: dict[str, Any] | None = None, **job: Any) -> Work:
        return await self.engine.admit(job_of({**(document or small()), **job}))

    async def make(self, document: dict[str, Any] | None = None, *, fresh: bool = False, **job: Any) -> Output:
        """Admit and generate."""
        return await self.run(await self.admit(document, **job), fresh=fresh)

    async def run(self, work: Work, files: Files | None = None, *, fresh: bool = False) -> Output:
        return await self.engine.generate(work, files or Files(), self.reports.append, fresh=fresh)

    async def started(self, document: dict[str, Any] | None = None) -> asyncio.Task[Output]:
        """A generation that is under way; whoever asks for it ends it."""
        return asyncio.create_task(self.run(await self.admit(document)), name="test-generate")

    @property
    def left(self) -> list[str]:
        """What lies in the input, output and temp folders of the server."""
        return [f for kind in ("input", "output", "temp") for f in self.sim.files(kind)]


@asynccontextmanager
async def bench(
    knobs: Knobs | None = None,
    *,
    prepare: bool = True,
    settings: dict[str, Any] | None = None,
    limits: Limits | None = None,
    pace: Pace = QUICK,
    **server: Any,
) -> AsyncIterator[Bench]:
    """A running simulator and an engine on it; ``settings`` change the engine's, ``server`` goes to the simulator."""
    server.setdefault("checkpoints", {CHECKPOINT: "sd15", SECOND: "sdxl"})
    async with comfyui.running(knobs, **server) as sim:
        changes = {"kind": "comfyui", **(settings or {})}
        engine = ComfyEngine(settings_for(changes.pop("url", sim.url), **changes), limits or Limits(), pace)
        try:
            if prepare:
                await engine.prepare()
            yield Bench(sim, engine)
        finally:
            await engine.aclose()
