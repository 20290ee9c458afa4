"""What the node is, what it can say of itself, and the orders it gets from a queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


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
