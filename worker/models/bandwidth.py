"""How fast transfers may be together, and which of them must stand still."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from worker.models.base import Priority

LOOKS_AGAIN_S = 0.5
"""After which one that stands still asks for its priority anew, which may have risen without a word."""

SHARE_S = 0.1
"""Of the bandwidth's bytes in this time is what one receives before it pays."""

_LEAST = 16 * 1024


class Bandwidth:
    """A token bucket over all transfers, in loop time; ``rate`` in bytes a second, None: as fast as it goes.

    Bytes are paid for after they have come; who owes waits, first come first served.
    """

    def __init__(self, rate: int | None = None) -> None:
        self._rate = rate
        self._paid_until = 0.0
        self._paused = False
        self._stirred = asyncio.Event()

    @property
    def share(self) -> int | None:
        """How many bytes to receive at most before they are paid for; None: any number."""
        return None if self._rate is None else max(_LEAST, int(self._rate * SHARE_S))

    async def pay(self, count: int) -> None:
        """Wait until so many more bytes were allowed."""
        if self._rate is None or count == 0:
            return
        now = asyncio.get_running_loop().time()
        self._paid_until = max(self._paid_until, now) + count / self._rate
        await asyncio.sleep(self._paid_until - now)

    def pause(self, paused: bool) -> None:
        """Have transfers of priority BACKGROUND stand still, or go on."""
        self._paused = paused
        self._stirred.set()
        self._stirred = asyncio.Event()

    async def passage(self, priority: Callable[[], Priority]) -> None:
        """Wait for as long as transfers of this priority must stand still."""
        while self._paused and priority() is Priority.BACKGROUND:
            try:
                async with asyncio.timeout(LOOKS_AGAIN_S):
                    await self._stirred.wait()
            except TimeoutError:
                continue
