"""Requests for work, each alive until it was answered: what a server has leased is never left without a holder."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from worker.tasks import cancel_all
from worker.wire import Answer


@dataclass(frozen=True, slots=True)
class Answered:
    """A request's answer; ``sent`` and ``at`` are the event loop's times, ``offered_s`` how long we would wait."""

    answer: Answer
    sent: float
    at: float
    offered_s: float


@dataclass(eq=False, slots=True)
class _Poll:
    offered_s: float
    sent: float | None = None


class Asking:
    """``prepare`` makes the body of a request, ``send`` brings the answer to it.

    A request that has left when its asker is cancelled is left to the next one. What is answered before that goes to
    ``late``, unless it cannot be given back: then it is kept.
    """

    def __init__(
        self,
        prepare: Callable[[float], Awaitable[bytes]],
        send: Callable[[bytes, float], Awaitable[Answer]],
        late: Callable[[Answer], None],
    ) -> None:
        self._prepare = prepare
        self._send = send
        self._late = late
        self._polls: dict[asyncio.Task[Answered], _Poll] = {}
        self._left: dict[asyncio.Task[Answered], None] = {}

    @property
    def tasks(self) -> frozenset[asyncio.Task[Answered]]:
        """Requests that are not answered yet."""
        return frozenset(self._polls)

    @property
    def left(self) -> int:
        """Requests, or answers, that no receive waits for."""
        return len(self._left)

    async def answer(self, offered_s: float) -> Answered:
        """The answer to a request that was left, else to a new one; raises what ``prepare`` and ``send`` raise."""
        task = next(iter(self._left), None)
        if task is None:
            task = self._begin(offered_s)
        else:
            del self._left[task]
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            self._leave(task)
            raise
        return task.result()

    def _begin(self, offered_s: float) -> asyncio.Task[Answered]:
        poll = _Poll(offered_s)
        task = asyncio.create_task(self._ask(poll), name="availability-poll")
        self._polls[task] = poll
        task.add_done_callback(lambda ended: self._polls.pop(ended, None))
        return task

    async def _ask(self, poll: _Poll) -> Answered:
        loop = asyncio.get_running_loop()
        body = await self._prepare(poll.offered_s)
        poll.sent = sent = loop.time()
        answer = await self._send(body, poll.offered_s)
        return Answered(answer, sent, loop.time(), poll.offered_s)

    def _leave(self, task: asyncio.Task[Answered]) -> None:
        poll = self._polls.get(task)
        if poll is not None and poll.sent is None:
            task.cancel()
            return
        self._left[task] = None
        task.add_done_callback(self._came_late)

    def _came_late(self, task: asyncio.Task[Answered]) -> None:
        if task not in self._left:
            return
        if task.cancelled() or task.exception() is not None:
            del self._left[task]
            return
        answer = task.result().answer
        if answer.generation is None or answer.generation.id is not None:
            del self._left[task]
            self._late(answer)

    async def aclose(self) -> None:
        """Cut off what was not answered."""
        await cancel_all(set(self._polls))
        self._left.clear()
