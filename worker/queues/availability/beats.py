"""One heartbeat for all who want one at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class Beats:
    """Joins calls: who comes while one is on its way gets the next, which is sent after they came.

    So whoever joins may count its lease from the moment at which it called. One is on its way at a time.
    """

    def __init__(self, send: Callable[[], Awaitable[None]]) -> None:
        self._send = send
        self._next: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def tasks(self) -> frozenset[asyncio.Task[None]]:
        """What is on its way; it ends by itself, also when nobody waits for it any more."""
        return frozenset(self._tasks)

    async def join(self) -> None:
        """Return when a heartbeat that was sent after this call has been answered; raises what it raises."""
        if self._next is None:
            self._next = asyncio.create_task(self._beat(), name="availability-heartbeat")
            self._tasks.add(self._next)
            self._next.add_done_callback(self._ended)
        beat = self._next
        await asyncio.wait({beat})
        beat.result()

    async def _beat(self) -> None:
        async with self._turn:
            self._next = None
            await self._send()

    def _ended(self, beat: asyncio.Task[None]) -> None:
        self._tasks.discard(beat)
        if not beat.cancelled():
            beat.exception()
