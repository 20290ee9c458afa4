"""Every simulated image server, each with the engine that drives it at the pace of tests."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol

from typing_extensions import TypeVar

from tests.support import comfy_engine, engines
from tests.support import fooocus as fooocus_engine
from worker.engines.base import Engine, ServerLog
from worker.engines.comfyui.engine import ComfyEngine
from worker.engines.fooocus.engine import FooocusEngine
from worker.engines.sdapi.engine import SdapiEngine
from worker.settings import Settings
from worker.simulators import Simulator, comfyui, fooocus, running

COMFY_PACE = dataclasses.replace(comfy_engine.QUICK, quiet_s=1.0, dead_s=0.5, mute_s=1.0)
FOOOCUS_PACE = dataclasses.replace(fooocus_engine.QUICK, dead_s=0.5)
CHECKPOINTS: dict[str, comfyui.Architecture] = {
    "dreamshaper_8.safetensors": "sd15",
    "sd_xl_base_1.0.safetensors": "sdxl",
    "sd_xl_refiner_1.0.safetensors": "sdxl-refiner",
    "sd3.5_medium.safetensors": "sd35",
    "flux1-dev.safetensors": "flux",
}
"""What a simulated ComfyUI has as real files, so that portable jobs can be built for each."""


class Server(Protocol):
    """Any simulated server."""

    @property
    def url(self) -> str: ...


S = TypeVar("S", bound=Server, default=Simulator)


@dataclass(frozen=True)
class Served(Generic[S]):
    """A server that runs. ``log`` is what it prints, where that may be read."""

    sim: S
    log: ServerLog | None = None

    def engine(self, settings: Settings, *, quiet_s: float = 1.0) -> Engine:
        """The driver for it; whoever asks for it closes it. ``quiet_s``: what it bears of a server that hangs."""
        match self.sim:
            case comfyui.ComfyUI():
                return ComfyEngine(settings.engine, settings.limits, dataclasses.replace(COMFY_PACE, quiet_s=quiet_s))
            case fooocus.Fooocus():
                log = self.log or self.sim.journal
                pace = dataclasses.replace(FOOOCUS_PACE, quiet_s=quiet_s)
                return FooocusEngine(settings.engine, settings.limits, log, pace, ())
            case _:
                return SdapiEngine(
                    settings.engine, settings.limits, dataclasses.replace(engines.QUICK, quiet_s=quiet_s)
                )


@asynccontextmanager
async def served(dialect: str, knobs: Any, *, log: ServerLog | None, **server: Any) -> AsyncIterator[Served[Any]]:
    """A server: "comfyui", "fooocus" or "fooocus-0.4.1.1", else a dialect of the sdapi family.

    ``server`` goes to the simulator; ``log`` takes the place of what a Fooocus-API prints.
    """
    name, _, version = dialect.partition("-")
    match name:
        case "comfyui":
            async with comfyui.running(knobs, **{"checkpoints": CHECKPOINTS, **server}) as comfy:
                yield Served(comfy)
        case "fooocus":
            async with fooocus.running(version or fooocus_engine.NEW, knobs, **server) as api:
                yield Served(api, log)
        case _:
            async with running(dialect, knobs, **server) as sim:
                yield Served(sim)
