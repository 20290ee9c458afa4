"""What the endpoints in the image server's own language share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import HTTPException

from worker.desk import Desk
from worker.engines.base import Engine
from worker.gate import Gate
from worker.settings.groups import EngineKind


@dataclass(frozen=True, slots=True)
class Native:
    """The server behind the worker. ``kind`` is the configured one; which it is tells ``engine.name`` in the end.

    ``options_allowed``: requests may change the server's global settings.
    """

    desk: Desk
    engine: Engine
    gate: Gate
    kind: EngineKind
    options_allowed: bool = False

    def may_be(self, *names: str) -> bool:
        """Whether endpoints of such a server are worth having: it is one, or what it is is yet to be found out."""
        return self.kind == "auto" or self.kind in names

    def speaks(self, *names: str) -> Callable[[], Awaitable[None]]:
        """A dependency of routes: 404 where the server turned out to be another."""

        async def check() -> None:
            if self.engine.name not in names:
                raise HTTPException(404, f"the server here is {self.engine.name}, which has no such endpoint")

        return check
