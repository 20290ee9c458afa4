"""What the node is, what it can say of itself, and the orders it gets from a queue."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from worker.wire import DiskReport, Download, Evict, HeldModel, PreviousRun, Rates

_NVIDIA = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
_NVIDIA_MEMORY = ("nvidia-smi", "--query-gpu=memory.used,memory.total", "--format=csv,noheader,nounits")
_NVIDIA_MOST_S = 5.0
_KILL_MOST_S = 1.0
"""A process that waits for a driver that is stuck cannot be killed, and is left behind."""


class NodeUnfit(Exception):
    """The node is given up: its server, or what that needs, cannot be made to work here."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the node is: ``id`` names the worker, ``machine`` the hardware under it."""

    id: str
    machine: str
    version: str
    gpu: str | None = None
    instance: str = ""
    """New at each start of the process, or of its container."""
    vram_gb: float | None = None
    """Memory of the GPU in GiB, as cards are sold."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What a queue asks of the node beside the jobs: models to fetch or drop, jobs to cancel."""

    download: tuple[Download, ...] = ()
    evict: tuple[Evict, ...] = ()
    cancel: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What the node can truthfully say of itself now.

    ``models`` are those that are whole on disk, ``tier`` ``vram`` for what the server says it holds, else for what the
    last verified generation since its start used; never what is meant to be. ``progress`` and hop by job id.
    """

    models: tuple[HeldModel, ...] = ()
    disk: DiskReport | None = None
    rates: Rates = field(default_factory=Rates)
    vram_gb: float | None = None
    jobs: Mapping[str, tuple[float | None, str]] = field(default_factory=dict)
    stats: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Use:
    """So many bytes of so many."""

    used: int
    total: int

    def to_dict(self) -> dict[str, int]:
        return {"used": self.used, "total": self.total}


@dataclass(slots=True)
class Vitals:
    """The latest figures of the machine, None until they were read and where nobody can tell; all in bytes.

    ``memory`` is what the container holds and cannot drop, of what it may; ``vram`` the first GPU's. ``previous`` is
    how the run before this one ended, where its record was found.
    """

    memory: Use | None = None
    vram: Use | None = None
    disk_free: int | None = None
    previous: PreviousRun | None = None

    def gauges(self) -> dict[str, float]:
        """What is known, under the names of the metrics."""
        found: dict[str, float] = {}
        for name, use in (("memory", self.memory), ("vram", self.vram)):
            if use is not None:
                found |= {f"{name}_used_bytes": use.used, f"{name}_total_bytes": use.total}
        if self.disk_free is not None:
            found["disk_free_bytes"] = self.disk_free
        return found


class Node(Protocol):
    """What a queue's driver may know of the node that it works for."""

    @property
    def identity(self) -> Identity: ...

    async def report(self) -> Report:
        """Asks nobody who could keep it waiting, and raises nothing."""
        ...

    async def identity_token(self, refused: str | None = None) -> str | None:
        """The platform's proof of who this node is, fresh enough to be used now; None where it gives none.

        ``refused`` is one that somebody did not take: another one is asked for, and given where there is one.
        """
        ...


@dataclass(frozen=True, slots=True)
class Gpu:
    """A graphics card: its name as the driver has it, and its memory in GiB; None where that is unknown."""

    name: str | None = None
    vram_gb: float | None = None


async def find_gpu(command: tuple[str, ...] = _NVIDIA) -> Gpu:
    """The first GPU as nvidia-smi tells of it; nothing is known where there is none, or where it does not answer."""
    told = await nvidia_smi(command)
    return Gpu() if told is None else gpu_of(told)


async def gpu_memory(command: tuple[str, ...] = _NVIDIA_MEMORY) -> Use | None:
    """What is taken of the first GPU's memory; None where nvidia-smi does not tell. It costs tens of milliseconds."""
    told = await nvidia_smi(command)
    return None if told is None else gpu_use_of(told)


async def nvidia_smi(command: tuple[str, ...]) -> str | None:
    """What it prints; None where there is none, or where it does not answer: a GPU may be gone or stuck."""
    if shutil.which(command[0]) is None:
        return None
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(_NVIDIA_MOST_S):
            output, _ = await process.communicate()
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            process.kill()
            with suppress(TimeoutError):
                async with asyncio.timeout(_KILL_MOST_S):
                    await process.wait()
    return output.decode("utf-8", "replace") if process.returncode == 0 else None


def gpu_of(told: str) -> Gpu:
    """The first line of nvidia-smi's ``name, memory.total`` in MiB; a name may hold commas, the memory be ``[N/A]``."""
    name, _, memory = told.split("\n", maxsplit=1)[0].rpartition(",")
    mib = memory.strip()
    return Gpu(name.strip() or None, round(int(mib) / 1024, 1) if mib.isascii() and mib.isdigit() else None)


def gpu_use_of(told: str) -> Use | None:
    """The first line of nvidia-smi's ``memory.used, memory.total`` in MiB; None where they are ``[N/A]``."""
    words = [word.strip() for word in told.split("\n", maxsplit=1)[0].split(",")]
    if len(words) != 2 or not all(word.isascii() and word.isdigit() for word in words):
        return None
    return Use(int(words[0]) << 20, int(words[1]) << 20)
