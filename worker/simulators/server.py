"""A simulated server on a real socket: start, fall, restart, end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

from worker.simulators.app import Api
from worker.simulators.catalogue import add_catalogue
from worker.simulators.control import add_control
from worker.simulators.dialects import DIALECTS
from worker.simulators.extras import add_extras
from worker.simulators.knobs import Fault, Knobs
from worker.simulators.listener import Listener
from worker.simulators.machine import Machine
from worker.simulators.models import Disk, ModelFile, model_files
from worker.simulators.openapi import add_openapi
from worker.simulators.routes import add_generation, add_state
from worker.simulators.state import Stats, until

DEFAULT_MODELS = ("dreamshaper_8.safetensors", "sd_xl_base_1.0.safetensors", "realistic/vision_v6.safetensors")


class Simulator:
    """A server that stands in for a real one; use `running`. All members may be used while it runs."""

    def __init__(self, dialect: str, knobs: Knobs, disk_files: list[ModelFile], directory: Path | None) -> None:
        self.dialect = DIALECTS[dialect]
        self.knobs = knobs
        self.stats = Stats()
        self.disk = Disk(self.dialect, disk_files, directory)
        self.machine = Machine(self.dialect, knobs, self.stats, self.disk)
        self.machine.fall = self._fall
        self.on_exit: Callable[[], object] | None = None
        """What the fault `exit` calls; without it the socket closes for good."""
        self.url = ""
        self._api: Api | None = None
        self._auth: str | None = None
        self._listener = Listener()
        self._life: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int, auth: str | None = None) -> None:
        """Reserve the port and listen as soon as the start timer allows: before the return when that is 0."""
        host = "127.0.0.1" if self.knobs.no_ipv6 and ":" in host else host
        self._auth = auth
        self._listener.reserve(host, port)
        self.url = self._listener.url
        opened = self._begin_life(0.0)
        if self.machine.port_due:
            await opened

    @property
    def options(self) -> dict[str, Any]:
        """The server's settings."""
        return self.machine.options

    @property
    def listening(self) -> bool:
        """Whether the port is open."""
        return self._listener.listening

    def release(self) -> None:
        """Let a generation that hangs go on."""
        self.machine.release()

    def restart(self, seconds: float = 0.0) -> None:
        """Cut all connections, be away for so long, and come back with the start timers."""
        self._close()
        self._begin_life(seconds)

    async def aclose(self) -> None:
        """End at once; running requests get no answer."""
        self._close()
        await self._listener.aclose()

    def _fall(self, fault: Fault) -> None:
        if fault.kind == "restart":
            self.restart(fault.seconds)
        elif self.on_exit is not None:
            self.on_exit()
        else:
            asyncio.get_running_loop().call_soon(self._close)

    def _begin_life(self, away: float) -> asyncio.Task[None]:
        self.stats.starts += 1
        self.machine.boot()
        self.machine.started += away
        self._api = self._new_api()
        self._life = asyncio.create_task(self._open_when_due(), name="simulator-start")
        return self._life

    def _new_api(self) -> Api:
        api = Api(self.machine, self._auth)
        for add in (add_generation, add_state, add_catalogue, add_extras, add_openapi):
            add(api)
        add_control(api, self.restart)
        return api

    async def _open_when_due(self) -> None:
        await until(lambda: self.machine.port_due)
        await self._open()

    async def _open(self) -> None:
        if self._api is not None:
            keep_alive = self.knobs.keep_alive_seconds
            await self._listener.open(self._api, self.dialect.keep_alive_seconds if keep_alive is None else keep_alive)

    def _close(self) -> None:
        if self._life is not None:
            self._life.cancel()
            self._life = None
        self._listener.close()


@contextlib.asynccontextmanager
async def running(
    dialect: str = "sdnext",
    knobs: Knobs | None = None,
    *,
    models: Iterable[ModelFile | str] = DEFAULT_MODELS,
    loras: Iterable[ModelFile | str] = (),
    vaes: Iterable[ModelFile | str] = (),
    models_dir: Path | None = None,
    host: str = "::1",
    port: int = 0,
    auth: str | None = None,
) -> AsyncIterator[Simulator]:
    """A simulated server in this process's event loop.

    ``models_dir`` is a real models folder that refreshes look into too; ``auth`` is "user:password".
    """
    files = [*model_files(models), *model_files(loras, "lora"), *model_files(vaes, "vae")]
    simulator = Simulator(dialect, knobs or Knobs(), files, models_dir)
    await simulator.start(host, port, auth)
    try:
        yield simulator
    finally:
        await simulator.aclose()
