"""SIGTERM and SIGINT: who is told of them, from the first line of a start to the last of its end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

NUMBERS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Tells whoever listens last; where nobody listens, the process has the handlers that it had before.

    A process that is the first of its container must listen all the time: the kernel keeps from it what it has no
    handler for.
    """

    def __init__(self) -> None:
        self._listeners: list[Callable[[], None]] = []
        self._before: dict[signal.Signals, Any] = {}

    @contextmanager
    def heard(self, listener: Callable[[], None]) -> Iterator[None]:
        """Each signal calls the listener within this block, but for blocks inside it that have their own.

        Where the event loop can hear none (it is not the main thread's), nothing happens.
        """
        self._listeners.append(listener)
        first = len(self._listeners) == 1
        try:
            if first:
                self._install()
            yield
        finally:
            if first:
                self._remove()
            self._listeners.pop()

    def _tell(self) -> None:
        self._listeners[-1]()

    def _install(self) -> None:
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in NUMBERS}
        try:
            for number in NUMBERS:
                loop.add_signal_handler(number, self._tell)
        except (NotImplementedError, RuntimeError, ValueError):
            return
        self._before = before

    def _remove(self) -> None:
        """asyncio would leave Python's own handlers behind, not those that were there."""
        loop = asyncio.get_running_loop()
        for number, handler in self._before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}
