"""Waking the receivers of this process when something changed in the queue."""

from __future__ import annotations

import asyncio


class Wakeup:
    """Take a `ticket` first, look, then `wait` with it: nothing that happens in between is missed."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def ticket(self) -> asyncio.Event:
        return self._next

    def notify(self) -> None:
        """Wake everybody who holds a ticket."""
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, ticket: asyncio.Event, seconds: float) -> None:
        """Return once notified since the ticket was taken, or after the time."""
        try:
            async with asyncio.timeout(seconds):
                await ticket.wait()
        except TimeoutError:
            return
