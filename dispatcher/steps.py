"""Work in small steps, so that it can be done beside other work in one thread."""

from __future__ import annotations

import types
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Yields after about a millisecond's work each time, and returns what was made."""


def whole(steps: Steps[T]) -> T:
    """All of it at once."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            made: T = done.value
            return made


@types.coroutine
def beside(steps: Steps[T]) -> Steps[T]:
    """To be awaited: bit by bit, everything else having its turn in between, as behind ``asyncio.sleep(0)``."""
    return (yield from steps)
