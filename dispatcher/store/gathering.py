"""Joining calls that come while an earlier one is under way, so that many share one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from dispatcher.store.base import StoreUnavailable
from worker.errors import InternalError
from worker.tasks import cancel_all

In = TypeVar("In")
Out = TypeVar("Out")


class Gathering(Generic[In, Out]):
    """One call at once when nothing is under way, else together with all that come meanwhile, up to ``most``.

    Between the beginnings of two lie ``apart_s`` seconds where there were fewer than that.

    ``perform`` answers each item in its place. Where it fails for a mistake within one item, each is tried alone, so
    that nobody fails for another's.
    """

    def __init__(
        self, perform: Callable[[list[In]], Awaitable[Sequence[Out]]], *, most: int, apart_s: float, name: str
    ) -> None:
        self._perform = perform
        self._most = most
        self._apart_s = apart_s
        self._name = name
        self._waiting: list[tuple[In, asyncio.Future[Out]]] = []
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, item: In) -> Out:
        answer: asyncio.Future[Out] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=self._name)
        return await answer

    async def aclose(self) -> None:
        """Whatever waits still is not done."""
        if self._task is not None:
            await cancel_all({self._task})
        for _, answer in self._waiting:
            if not answer.done():
                answer.set_exception(StoreUnavailable("the store was closed"))

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            began = asyncio.get_running_loop().time()
            try:
                await self._answer(batch)
            except asyncio.CancelledError:
                self._waiting = [*batch, *self._waiting]
                raise
            if len(batch) < self._most:
                await asyncio.sleep(began + self._apart_s - asyncio.get_running_loop().time())

    async def _answer(self, batch: list[tuple[In, asyncio.Future[Out]]]) -> None:
        [found] = await asyncio.gather(self._perform([item for item, _ in batch]), return_exceptions=True)
        if isinstance(found, InternalError) and len(batch) > 1:
            for one in batch:
                await self._answer([one])
        elif isinstance(found, BaseException):
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(found)
        else:
            for (_, answer), value in zip(batch, found, strict=True):
                if not answer.done():
                    answer.set_result(value)
