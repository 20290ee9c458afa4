"""A simulated ComfyUI on a real socket: start, fall, restart, end."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path

from worker.simulators.comfyui.api import Api
from worker.simulators.comfyui.catalogue import add_catalogue
from worker.simulators.comfyui.control import add_control
from worker.simulators.comfyui.files import add_files
from worker.simulators.comfyui.folders import FileType, Folders, Models
from worker.simulators.comfyui.jobs import add_jobs
from worker.simulators.comfyui.knobs import Fault, Knobs
from worker.simulators.comfyui.machine import Machine
from worker.simulators.comfyui.prompts import add_prompts
from worker.simulators.comfyui.state import Stats
from worker.simulators.comfyui.weights import Architecture
from worker.simulators.listener import Listener

Names = Iterable[str] | Mapping[str, Architecture]

DEFAULT_CHECKPOINTS = ("dreamshaper_8.safetensors", "sd_xl_base_1.0.safetensors")


class ComfyUI:
    """A server that stands in for a real one; use `running`. All members may be used while it runs."""

    def __init__(self, knobs: Knobs, base_dir: Path, models: Models) -> None:
        self.knobs = knobs
        self.stats = Stats()
        self.folders = Folders(base_dir, models)
        self.machine = Machine(knobs, self.stats, self.folders)
        self.on_exit: Callable[[], object] | None = None
        """What the fault `exit` calls; without it the socket closes for good."""
        self._listener = Listener()
        self._life: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._listener.url

    @property
    def listening(self) -> bool:
        """Whether the port is open."""
        return self._listener.listening

    @property
    def base_dir(self) -> Path:
        """The folder above models, input, output and temp."""
        return self.folders.base

    def files(self, kind: FileType) -> list[str]:
        """The files that lie in the output, temp or input folder."""
        return self.folders.files(kind)

    def release(self) -> None:
        """Let a prompt that hangs go on."""
        self.machine.release()

    async def start(self, host: str, port: int) -> None:
        """Reserve the port and listen as soon as the start timer allows: before the return when that is 0."""
        self._listener.reserve(host, port)
        opened = self._begin_life(self.knobs.start_seconds)
        if self.knobs.start_seconds <= 0:
            await opened

    def restart(self, seconds: float = 0.0) -> None:
        """Die, be away for so long and the start timer, and come back without queue, history, cache and temp files."""
        self._die()
        self._begin_life(seconds + self.knobs.start_seconds)

    async def aclose(self) -> None:
        """End at once; running requests get no answer."""
        self._die()
        await self._listener.aclose()
        if self._ending:
            await asyncio.wait(list(self._ending))

    def _begin_life(self, away: float) -> asyncio.Task[None]:
        self.machine = Machine(self.knobs, self.stats, self.folders)
        self.machine.fall = self._fall
        self.machine.hub.on_cut = self._listener.cut
        self._life = asyncio.create_task(self._open_after(away), name="simulator-start")
        return self._life

    async def _open_after(self, seconds: float) -> None:
        if seconds > 0:
            await asyncio.sleep(seconds)
        self.stats.starts += 1
        self.machine.start()
        api = Api(self.machine)
        for add in (add_prompts, add_catalogue, add_files, add_jobs):
            add(api)
        add_control(api, self.restart)
        await self._listener.open(api, self.knobs.keep_alive_seconds, ws="websockets-sansio")

    def _fall(self, fault: Fault) -> None:
        loop = asyncio.get_running_loop()
        if fault.kind == "restart":
            loop.call_soon(self.restart, fault.seconds)
        elif self.on_exit is not None:
            self.on_exit()
        else:
            loop.call_soon(self._die)

    def _die(self) -> None:
        tasks = self.machine.stop()
        if self._life is not None:
            self._life.cancel()
            tasks = [*tasks, self._life]
            self._life = None
        for task in tasks:
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        self._listener.close()


@contextlib.asynccontextmanager
async def running(
    knobs: Knobs | None = None,
    *,
    checkpoints: Names = DEFAULT_CHECKPOINTS,
    loras: Names = (),
    vaes: Names = (),
    text_encoders: Names = (),
    diffusion_models: Names = (),
    models: Models | None = None,
    base_dir: Path | None = None,
    host: str = "::1",
    port: int = 0,
) -> AsyncIterator[ComfyUI]:
    """A simulated server in this process's event loop.

    Model files are names alone, or real files where a mapping gives their architecture; ``models`` adds other
    folders. ``base_dir`` holds `models`, `input`, `output` and `temp`; without it a temporary folder does.
    """
    named: dict[str, Names] = {
        "checkpoints": checkpoints,
        "loras": loras,
        "vae": vaes,
        "text_encoders": text_encoders,
        "diffusion_models": diffusion_models,
        **(models or {}),
    }
    with contextlib.ExitStack() as stack:
        base = base_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="comfyui-")))
        simulator = ComfyUI(knobs or Knobs(), base, named)
        await simulator.start(host, port)
        try:
            yield simulator
        finally:
            await simulator.aclose()
