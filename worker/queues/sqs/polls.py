"""Polls, each alive until it was answered: what SQS has handed over is never left without a holder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Polls(Generic[T]):
    """One poll at a time, for whoever waits.

    A poll cannot be called back: the service goes on looking for a message. So one whose receiver was cancelled is
    left to the next, and what it brings when nobody waits goes to ``late``; as does what nobody fetched in time.
    """

    def __init__(self, begin: Callable[[], Coroutine[Any, Any, T]], late: Callable[[T], None]) -> None:
        self._begin = begin
        self._late = late
        self._turn = asyncio.Lock()
        self._poll: asyncio.Task[T] | None = None
        self._awaited = False

    @property
    def pending(self) -> asyncio.Task[T] | None:
        """The poll that is not answered yet."""
        return self._poll

    async def answer(self) -> T:
        """What the poll under way brings, else a new one; raises what it raises."""
        async with self._turn:
            poll = self._poll or self._begun()
            self._awaited = True
            try:
                await asyncio.wait({poll})
            except asyncio.CancelledError:
                if poll.done():
                    self._unclaimed(poll)
                raise
            finally:
                self._awaited = False
            return poll.result()

    def _begun(self) -> asyncio.Task[T]:
        poll = self._poll = asyncio.create_task(self._begin(), name="sqs-poll")
        poll.add_done_callback(self._answered)
        return poll

    def _answered(self, poll: asyncio.Task[T]) -> None:
        self._poll = None
        if not self._awaited:
            self._unclaimed(poll)

    def _unclaimed(self, poll: asyncio.Task[T]) -> None:
        if not poll.cancelled() and poll.exception() is None:
            self._late(poll.result())
