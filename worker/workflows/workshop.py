"""Where the operator's own code runs: beside the event loop, for a bounded time, and never in unbounded numbers."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, Generic, TypeVar

from worker.errors import WorkerError

T = TypeVar("T")

AT_ONCE = 2
OVERDUE_MOST = 4
PRESS_EVERY_S = 0.5
BUSY = 0.1
"""The share of the time for which a call that works on has the processor at least, however loaded the machine is."""


class Raised(Exception):
    """What the operator's code raised, whatever it was, is the cause."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__}")
        self.error = error


class Overdue(Exception):
    """It has not ended within its time, and was told to stop."""


class Stuck(Exception):
    """Too many earlier calls still have not ended although their time was over: no further one is begun."""


class _Stopped(BaseException):
    """Raised inside a call that is overdue; no ``except Exception`` catches it."""


class Workshop:
    """Runs each call in a thread of its own; at most `AT_ONCE` of an owner at a time, the others wait.

    A call that is overdue costs its caller alone: he is told at once, and where it works on an exception is raised in
    its thread, which ends any loop in Python. One that only waits ends when it does; with `OVERDUE_MOST` such calls of
    an owner no more of his are begun. The threads keep no process from ending.
    """

    def __init__(self) -> None:
        self._threads = _Threads()
        self._room: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(AT_ONCE))
        self._overdue: Counter[str] = Counter()

    async def run(self, owner: str, call: Callable[[], T], *, limit_s: float) -> T:
        """What the call returns. Raises `Overdue`, `Stuck`, what it raised as `Raised`, and a `WorkerError` bare."""
        async with self._room[owner]:
            if self._overdue[owner] >= OVERDUE_MOST:
                raise Stuck
            attempt = _Attempt(call)
            ended = asyncio.get_running_loop().run_in_executor(self._threads, attempt)
            try:
                await asyncio.wait({ended}, timeout=limit_s)
            finally:
                if not ended.done():
                    self._overdue[owner] += 1
                    ended.add_done_callback(lambda _: self._overdue.subtract((owner,)))
                    _press(attempt, ended, min(limit_s, PRESS_EVERY_S))
            if not ended.done():
                raise Overdue
            return attempt.outcome()


def _press(attempt: _Attempt[Any], ended: asyncio.Future[Any], every_s: float) -> None:
    """Have a call stopped as soon as it is seen to work on."""
    if not ended.done():
        attempt.stop(every_s * BUSY)
        asyncio.get_running_loop().call_later(every_s, _press, attempt, ended, every_s)


class _Attempt(Generic[T]):
    """One call, and how it ended. ``stop`` comes from another thread, at any time."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._stopped = False
        self._worked_s = 0.0
        self._value: T | None = None
        self._error: BaseException | None = None

    def __call__(self) -> None:
        try:
            with self._lock:
                if self._stopped:
                    return
                self._thread = threading.get_ident()
            self._work()
            with self._lock:
                self._thread = None
        except _Stopped:
            self._thread = None

    def _work(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:  # noqa: BLE001
            self._error = error

    def stop(self, busy_s: float) -> None:
        """Raise `_Stopped` in the thread where it has worked for so long since it was asked last.

        A thread that waits in C could not heed it: until it did, CPython would have every other thread look after its
        exception at each step.
        """
        with self._lock:
            self._stopped = True
            if self._thread is None:
                return
            worked_s = time.clock_gettime(time.pthread_getcpuclockid(self._thread))
            if worked_s - self._worked_s > busy_s:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), ctypes.py_object(_Stopped))
            self._worked_s = worked_s

    def outcome(self) -> T:
        if isinstance(self._error, WorkerError):
            raise self._error
        if self._error is not None:
            raise Raised(self._error) from self._error
        return self._value  # type: ignore[return-value]


class _Threads(Executor):
    """A new daemon thread for each call, in the caller's context."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        context = contextvars.copy_context()

        def run() -> None:
            future.set_running_or_notify_cancel()
            future.set_result(context.run(call, *args, **kwargs))

        threading.Thread(target=run, name="workflow", daemon=True).start()
        return future
