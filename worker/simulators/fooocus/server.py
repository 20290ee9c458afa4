"""A simulated Fooocus-API on a real socket: start, fall, restart, end."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

from worker.simulators.fooocus.api import Parts, application
from worker.simulators.fooocus.catalogue import Catalogue
from worker.simulators.fooocus.control import control
from worker.simulators.fooocus.jobs import Journal
from worker.simulators.fooocus.knobs import Fault, Knobs
from worker.simulators.fooocus.machine import Machine
from worker.simulators.fooocus.schema import DEFAULT_LORA, DEFAULT_MODEL
from worker.simulators.listener import Listener
from worker.simulators.state import Stats, until

VERSIONS = {"0.4.1.1": "0.4", "0.5": "0.5"}
"""Each with the series that it stands for."""

DEFAULT_MODELS = (DEFAULT_MODEL, "sd_xl_base_1.0.safetensors", "realistic/vision_xl.safetensors")
DEFAULT_LORAS = (DEFAULT_LORA, "detail.safetensors", "styles/ink.safetensors")
_KEEP_ALIVE_SECONDS = 5


class Fooocus:
    """A server that stands in for a real one; use `running`. All members may be used while it runs."""

    def __init__(self, version: str, knobs: Knobs, catalogue: Catalogue, outputs: Path, api_key: str | None) -> None:
        self.version = version
        self.knobs = knobs
        self.stats = Stats()
        self.catalogue = catalogue
        self.journal = Journal()
        """What it printed; a log that a worker may read."""
        self.outputs = outputs
        """The folder of its saved files, a folder a day."""
        self.machine = Machine(VERSIONS[version], knobs, self.stats, self.journal, outputs)
        self.machine.fall = self._fall
        self.on_exit: Callable[[], object] | None = None
        """What the faults `exit` and `crash` call; without it the socket closes for good."""
        self._api_key = api_key
        self._listener = Listener()
        self._life: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it listens, or will."""
        return self._listener.url

    @property
    def listening(self) -> bool:
        """Whether the port is open."""
        return self._listener.listening

    async def start(self, host: str, port: int) -> None:
        """Reserve the port and listen as soon as the start timer allows: before the return when that is 0."""
        host = "127.0.0.1" if self.knobs.no_ipv6 and ":" in host else host
        self._listener.reserve(host, port)
        opened = self._begin_life(0.0)
        if self.machine.port_due:
            await opened

    def release(self) -> None:
        """Let a job that hangs go on."""
        self.machine.release()

    def restart(self, seconds: float = 0.0) -> None:
        """Cut all connections, be away for so long, and come back with the start timers and an empty queue."""
        self._close()
        self._begin_life(seconds)

    async def aclose(self) -> None:
        """End at once; running requests get no answer."""
        ended = set(self._life)
        self._close()
        await asyncio.gather(*ended, return_exceptions=True)
        await self._listener.aclose()

    def _fall(self, fault: Fault) -> None:
        loop = asyncio.get_running_loop()
        if fault.kind == "restart":
            loop.call_soon(self.restart, fault.seconds)
        elif self.on_exit is not None:
            self.on_exit()
        else:
            loop.call_soon(self._close)

    def _begin_life(self, away: float) -> asyncio.Task[None]:
        self.stats.starts += 1
        self.machine.boot()
        self.machine.started += away
        self.machine.default_model = self.catalogue.default_model
        self.machine.unloadable = self.catalogue.fault
        self.machine.sha256_of = self.catalogue.sha256
        self.journal.silent = not self.knobs.printing
        opened = asyncio.create_task(self._open_when_due(), name="simulator-start")
        self._life = {opened, asyncio.create_task(self.machine.work(), name="simulator-thread")}
        return opened

    async def _open_when_due(self) -> None:
        await until(lambda: self.machine.port_due)
        parts = Parts(self.machine, self.catalogue, self._api_key, self._listener.cut, self.restart)
        await self._listener.open(application(parts, control(parts)), _KEEP_ALIVE_SECONDS)
        self.journal.raw(f"INFO:     Uvicorn running on {self.url} (Press CTRL+C to quit)")

    def _close(self) -> None:
        for task in self._life:
            task.cancel()
        self._life = set()
        self._listener.close()


@contextlib.asynccontextmanager
async def running(
    version: str = "0.5",
    knobs: Knobs | None = None,
    *,
    models: Iterable[str] = DEFAULT_MODELS,
    loras: Iterable[str] = DEFAULT_LORAS,
    models_dir: Path | None = None,
    outputs: Path | None = None,
    host: str = "::1",
    port: int = 0,
    api_key: str | None = None,
    on_line: Callable[[str], object] | None = None,
) -> AsyncIterator[Fooocus]:
    """A simulated server in this process's event loop.

    ``models_dir`` is a real folder with ``checkpoints`` and ``loras`` that it lists too; ``outputs`` is where it
    saves its pictures, a temporary folder unless given; ``on_line`` gets each line that it prints.
    """
    with contextlib.ExitStack() as stack:
        if outputs is None:
            outputs = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="fooocus-", ignore_cleanup_errors=True))
            )
        catalogue = Catalogue(list(models), list(loras), models_dir)
        server = Fooocus(version, knobs or Knobs(), catalogue, outputs, api_key)
        server.journal.on_line = on_line or server.journal.on_line
        await server.start(host, port)
        try:
            yield server
        finally:
            await server.aclose()
