"""Blocking work of transfers, in threads of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


async def in_thread(threads: ThreadPoolExecutor, work: Callable[[], T], stop: Callable[[], None] | None = None) -> T:
    """Run it to its end, also when we are cancelled, so that nothing of it happens after us; ``stop`` hurries it."""
    future = asyncio.get_running_loop().run_in_executor(threads, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if stop is not None:
            stop()
        await _over(future)
        raise


async def _over(future: asyncio.Future[T]) -> None:
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            continue
    future.exception()
