"""A node of the fleet: a simulated image server, and `sd-worker run` as a process of its own beside it."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from demo.plan import BYTES, BYTES_A_SECOND, LOAD_S, ROOM, STEP_S
from worker import simulators
from worker.settings.source import surroundings

BASE = "base.safetensors"
"""The checkpoint that comes with the image: for the warm-up, and no part of the cache."""

STOP_S = 20.0


class Node:
    """One machine. What the server counted stays known when the node is gone."""

    def __init__(self, name: str, simulator: simulators.Simulator, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.alive = True
        self.frozen = False
        self._simulator = simulator
        self._process = process

    @classmethod
    @asynccontextmanager
    async def running(cls, name: str, folder: Path, variables: Mapping[str, str]) -> AsyncIterator[Node]:
        """A node with an empty disk; whatever is left of it ends with the block."""
        models = folder / "models"
        (models / "Stable-diffusion").mkdir(parents=True)
        knobs = simulators.Knobs(step_seconds=STEP_S, load_seconds=LOAD_S)
        async with simulators.running("sdnext", knobs, models=(BASE,), models_dir=models) as simulator:
            environment = surroundings() | {
                "WORKER_ENGINE": "sdnext",
                "WORKER_ENGINE_URL": simulator.url,
                "WORKER_NODE_ID": name,
                "WORKER_HTTP_PORT": "0",
                "WORKER_MODELS_DIR": str(models),
                "WORKER_MODELS_MAX_SIZE": str(int((ROOM + 0.5) * BYTES)),
                "WORKER_MODELS_BANDWIDTH": str(BYTES_A_SECOND),
                "WORKER_LOG_FORMAT": "json",
                **variables,
            }
            with (folder / "worker.log").open("wb") as log:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "worker", "run", env=environment, stdout=log, stderr=log
                )
            node = cls(name, simulator, process)
            try:
                yield node
            finally:
                await node.kill()

    @property
    def ended(self) -> bool:
        """Whether the worker's process is over, though nobody killed it."""
        return self.alive and self._process.returncode is not None

    @property
    def loads(self) -> int:
        """Models that the server loaded, but for the one that it came with."""
        return sum(name != Path(BASE).stem for name in self._simulator.stats.loads)

    @property
    def generations(self) -> int:
        """Pictures that the server was asked for, but for warm-ups."""
        return sum(one.model != Path(BASE).stem for one in self._simulator.stats.generations)

    def freeze(self) -> None:
        """The worker's process stands still, as on a machine that is suspended."""
        self._process.send_signal(signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        self.frozen = False

    async def kill(self) -> None:
        """The machine is gone: the worker gets no chance to say so, and the server is no more."""
        self.alive = False
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._simulator.aclose()

    async def drained(self) -> int:
        """Ask the worker to end, as a platform does; its exit code."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                return await self._process.wait()
        except TimeoutError:
            self._process.kill()
            return await self._process.wait()
