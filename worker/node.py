"""What the node is, what it can say of itself, and the orders it gets from a queue."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from typing import Any, Protocol

_NVIDIA = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
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


@dataclass(frozen=True, slots=True)
class Orders:
    """What a queue asks of the node beside the jobs: models to fetch or drop, jobs to cancel."""

    download: tuple[dict[str, Any], ...] = ()
    evict: tuple[dict[str, Any], ...] = ()
    cancel: tuple[str, ...] = ()


class Node(Protocol):
    @property
    def identity(self) -> Identity: ...


async def gpu_name(command: tuple[str, ...] = _NVIDIA) -> str | None:
    """The first GPU's name as nvidia-smi has it; None where there is none, or where it does not answer in time."""
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
            await process.wait()
    names = output.decode("utf-8", "replace").split("\n")
    return names[0].strip() or None if process.returncode == 0 else None
