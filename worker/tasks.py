"""Structured concurrency that keeps a job's own error bare."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")


async def run_guarded(body: Coroutine[Any, Any, T], *guards: Coroutine[Any, Any, Any], name: str = "guarded") -> T:
    """Run the body while guards watch over it.

    The first to finish wins: a guard that raises has the body cancelled and its error comes out bare; a guard
    that merely returns is spent. Nothing is left running, also when we are cancelled ourselves.
    """
    work = asyncio.create_task(body, name=name)
    watching = {asyncio.create_task(guard, name=f"{name}-guard-{i}") for i, guard in enumerate(guards)}
    try:
        while watching and not work.done():
            done, _ = await asyncio.wait({work, *watching}, return_when=asyncio.FIRST_COMPLETED)
            if work in done:
                break
            for guard in done & watching:
                watching.discard(guard)
                guard.result()
        return await work
    finally:
        await cancel_all({work, *watching})


async def cancel_all(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel the tasks and wait until each has ended, whatever it ends with."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.gather(*tasks, return_exceptions=True)


async def gather_bare(coroutines: Sequence[Coroutine[Any, Any, T]], *, name: str) -> list[T]:
    """All results in order; the first error cancels the rest and comes out bare."""
    tasks = [asyncio.create_task(coroutine, name=f"{name}-{i}") for i, coroutine in enumerate(coroutines)]
    try:
        if tasks:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done():
                    task.result()
        return [await task for task in tasks]
    finally:
        await cancel_all(set(tasks))


class Share:
    """What one has taken of a budget."""

    def __init__(self, budget: Budget, amount: int) -> None:
        self._budget = budget
        self.amount = amount

    def at_least(self, amount: int) -> None:
        """Own up to holding more than was asked for; waits for nothing, so the budget may be overdrawn."""
        more = max(0, amount - self.amount)
        self.amount += more
        self._budget.taken += more


class Budget:
    """A bounded amount of something; who wants more than all of it waits until everything is free."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def take(self, amount: int) -> AsyncIterator[Share]:
        """Wait for this much and hold it for the block."""
        amount = min(amount, self.size)
        async with self._freed:
            await self._freed.wait_for(lambda: self.taken + amount <= self.size)
            self.taken += amount
        share = Share(self, amount)
        try:
            yield share
        finally:
            self.taken -= share.amount
            async with self._freed:
                self._freed.notify_all()


LARGE = 1_000_000
"""Bytes of a document or a picture that is worked on beside the event loop."""


async def aside(size: int, work: Callable[[], T]) -> T:
    """Work on so many bytes; on many in a thread, so that the probes are answered meanwhile."""
    return await asyncio.to_thread(work) if size > LARGE else work()


async def first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    """Wait until one of them is over; the others are cancelled. Its error comes out bare."""
    tasks = {asyncio.create_task(wait, name=f"first-of-{i}") for i, wait in enumerate(waits)}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await cancel_all(tasks)


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Run the work to its end even when we are cancelled meanwhile; the cancellation comes out after it."""
    task = asyncio.create_task(work, name="to-the-end")
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result
