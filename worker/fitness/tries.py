"""One property of the node, measured as often as a fair verdict needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from worker.errors import AuthFailed, DependencyFailed
from worker.fitness.verdict import TRIES, Figure, Name, Reading, better, pause_s, suffices

log = structlog.get_logger()

AWAY_FIRST_S, AWAY_MOST_S = 5.0, 60.0


class Check(Protocol):
    """A property of the node; ``wanted`` is None where it is only told."""

    @property
    def name(self) -> Name: ...

    @property
    def wanted(self) -> float | None: ...

    async def measure(self) -> Reading:
        """One try.

        Raises `DependencyFailed` while that is away which it is measured against, `AuthFailed` and `ConfigError` for
        what the operator has to set right.
        """
        ...


async def once(check: Check) -> Figure:
    """One measurement, whatever it finds. Raises as `Check.measure`."""
    return Figure(check.name, check.wanted, await check.measure())


async def best_of(check: Check, on_try: Callable[[str, str], None]) -> Figure:
    """The best of up to `TRIES` measurements; one that suffices ends them, and so does one that would not change.

    What is away is waited for, however long that takes: it is no try. ``on_try`` is told a code and words before each
    wait. Raises as `Check.measure`, but for what is away.
    """
    best: Reading | None = None
    tries = 0
    while True:
        reading = await _measured(check, on_try)
        best, tries = better(check.name, reading, best), tries + 1
        figure = Figure(check.name, check.wanted, best, tries)
        if check.wanted is None or suffices(check.name, best.value, check.wanted) or reading.lasting or tries == TRIES:
            return figure
        wait_s = pause_s(tries)
        log.warning("fitness_tried", check=check.name, **figure.described(), again_in_s=wait_s)
        on_try("measuring_fitness", f"{figure}: tried again in {wait_s:g} s")
        await asyncio.sleep(wait_s)


async def _measured(check: Check, on_try: Callable[[str, str], None]) -> Reading:
    """The next measurement that is one of the node."""
    wait_s = AWAY_FIRST_S
    while True:
        try:
            return await check.measure()
        except AuthFailed:
            raise
        except DependencyFailed as error:
            log.warning("fitness_waits", check=check.name, code=error.code, error=error.message, again_in_s=wait_s)
            on_try(error.code, f"{check.name} cannot be measured: {error.message}")
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 2, AWAY_MOST_S)
