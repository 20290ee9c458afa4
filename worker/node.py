"""What the node is, what it can say of itself, and the orders it gets from a queue."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from worker.wire import DiskReport, Download, Evict, HeldModel, Rates

_NVIDIA = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
_NVIDIA_MOST_S = 5.0


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
    """New at each start of the process."""
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


class Node(Protocol):
    """What a queue's driver may know of the node that it works for."""

    @property
    def identity(self) -> Identity: ...

    async def report(self) -> Report:
        """Asks nobody who could keep it waiting, and raises nothing."""
        ...

    async def identity_token(self) -> str | None:
        """The platform's proof of who this node is, fresh enough to be used now; None where it gives none."""
        ...


@dataclass(frozen=True, slots=True)
class Gpu:
    """A graphics card: its name as the driver has it, and its memory in GiB; None where that is unknown."""

    name: str | None = None
    vram_gb: float | None = None


async def find_gpu(command: tuple[str, ...] = _NVIDIA) -> Gpu:
    """The first GPU as nvidia-smi tells of it; nothing is known where there is none, or where it does not answer."""
    if shutil.which(command[0]) is None:
        return Gpu()
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(_NVIDIA_MOST_S):
            output, _ = await process.communicate()
    except TimeoutError:
        return Gpu()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return gpu_of(output.decode("utf-8", "replace")) if process.returncode == 0 else Gpu()


def gpu_of(told: str) -> Gpu:
    """The first line of nvidia-smi's ``name, memory.total`` in MiB; a name may hold commas, the memory be ``[N/A]``."""
    name, _, memory = told.split("\n", maxsplit=1)[0].rpartition(",")
    mib = memory.strip()
    return Gpu(name.strip() or None, round(int(mib) / 1024, 1) if mib.isascii() and mib.isdigit() else None)
