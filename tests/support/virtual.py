"""An event loop whose time jumps: an hour of timeouts passes in no time, and always the same way.

It works for everything that waits through the loop. While a thread is at work the time stands still; when nothing
could ever happen again it says so instead of hanging. Real sockets need the real loop.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import selectors
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

START = datetime(2026, 1, 1, tzinfo=UTC)


class NothingWillHappen(RuntimeError):
    """No timer, no thread and no callback is left, and the test still waits."""


class _JumpingSelector(selectors.DefaultSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or timeout == 0:
            return events
        if self.loop.threads:
            return super().select(None)
        if timeout is None:
            raise NothingWillHappen
        self.loop.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now = 0.0
        self.threads = 0
        selector = _JumpingSelector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        future = super().run_in_executor(executor, func, *args)
        self.threads += 1
        future.add_done_callback(self._thread_ended)
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        self.threads += 1
        try:
            await super().shutdown_default_executor(*args)
        finally:
            self.threads -= 1

    def _thread_ended(self, future: Any) -> None:
        self.threads -= 1


class VirtualClock:
    """Wall time that goes with the virtual loop, from a fixed start."""

    def now(self) -> datetime:
        return START + timedelta(seconds=asyncio.get_running_loop().time())


async def takes(seconds: float) -> None:
    """The time that a fake's work takes, on whatever loop it works."""
    await asyncio.sleep(seconds)


async def elapse(seconds: float) -> None:
    """Let virtual time pass; on a loop of real time this is an error, not a wait."""
    assert isinstance(asyncio.get_running_loop(), VirtualLoop), "a test waits for conditions, not for time"
    await takes(seconds)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end in virtual time; a task left behind is an error."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:

        async def whole() -> T:
            result = await main
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            assert not left, f"left behind: {[task.get_name() for task in left]}"
            return result

        return runner.run(whole())


def virtual(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Makes a coroutine a plain test that runs in virtual time."""

    @functools.wraps(test)
    def plain(*args: P.args, **kwargs: P.kwargs) -> None:
        run(test(*args, **kwargs))

    plain.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]
    return plain
