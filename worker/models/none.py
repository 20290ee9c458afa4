"""No cache: the worker has no folder of models, and jobs use what the server has."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType

import structlog

from worker import http
from worker.errors import ModelNotFound
from worker.mentions import Place
from worker.models.base import Entry, InFlight, Priority, Provided, Wanted

log = structlog.get_logger()

WHY = "there is no models folder of the worker (WORKER_MODELS_DIR)"


class NoCache:
    """`Models` without files: what the server lists is there, and nothing can be fetched."""

    version = 0
    bytes = 0
    cap = 0
    free = 0
    folder: Path | None = None
    paused: Mapping[str, str] = MappingProxyType({})

    @asynccontextmanager
    async def provided(self, wanted: Sequence[Wanted], at_most: timedelta | None = None) -> AsyncIterator[Provided]:
        """All of them where they are. Raises `ModelNotFound` for what the server does not list and a URL is given for.

        What has only a name is left to admission: servers do not tell of all that they find.
        """
        for one in wanted:
            if one.url is not None:
                _check_known(one)
        yield Provided(tuple(one.place for one in wanted))

    def hint(self, wanted: Wanted, priority: Priority = Priority.BACKGROUND) -> None:
        if not wanted.known:
            log.warning("model_hint_ignored", model=str(wanted.place), reason=WHY)

    async def fetch(self, wanted: Wanted, priority: Priority = Priority.START) -> Entry:
        """What the server lists comes as a baked entry without size. Raises `ModelNotFound` for all else."""
        _check_known(wanted)
        return Entry(wanted.place, 0, 0, baked=True)

    async def remove(self, place: Place) -> None:
        """Raises `ModelNotFound`."""
        raise ModelNotFound(f"{place} cannot be removed: {WHY}")

    def entries(self) -> tuple[Entry, ...]:
        return ()

    async def loaded(self) -> frozenset[Place]:
        """Nothing of ours."""
        return frozenset()

    def transfers(self) -> tuple[InFlight, ...]:
        return ()

    async def typed(self, wanted: Wanted) -> Wanted:
        """As it is: nothing will be fetched."""
        return wanted

    async def space(self) -> None:
        """Nothing is written, so nothing can be full."""

    async def tidy(self) -> None:
        """Nothing to tidy."""

    async def keep(self) -> None:
        """A service that has nothing to do."""

    def drain(self) -> None:
        """Nothing is under way."""

    async def aclose(self) -> None:
        """Nothing to close."""


def _check_known(wanted: Wanted) -> None:
    if not wanted.known:
        where = f"{wanted.field}: " if wanted.field else ""
        what = wanted.name or (http.shown(wanted.url) if wanted.url else "it")
        raise ModelNotFound(f"{where}the image server has no {wanted.kind} {what!r}, and {WHY}")
