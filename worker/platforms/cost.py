"""Keeps the platform's idea of what this instance is worth up to date."""

from __future__ import annotations

import asyncio

from worker.live import Live
from worker.platforms.base import Platform
from worker.stake import cost_of, is_news

PAUSE_S, PAUSE_MOST_S = 5.0, 60.0
"""Between two tellings; the longest after some that were not taken."""


class DeletionCost:
    """Tells the deletion cost when it changed enough to matter, never more often than every `PAUSE_S`.

    What a process before this one told is taken back at the start; what this one told, when `Platform.aclose` comes.
    """

    def __init__(self, platform: Platform, live: Live) -> None:
        self._platform = platform
        self._live = live
        self._told: int | None = None

    async def run(self) -> None:
        """A service; it wakes for nothing while there is no job."""
        pause_s = PAUSE_S
        while True:
            if not self._live and self._told == 0:
                await self._live.changed()
            cost = cost_of(tuple(self._live), asyncio.get_running_loop().time())
            if is_news(self._told, cost):
                taken = await self._platform.set_deletion_cost(cost)
                self._told = cost if taken else None
                pause_s = PAUSE_S if taken else min(pause_s * 2, PAUSE_MOST_S)
            await asyncio.sleep(pause_s)
