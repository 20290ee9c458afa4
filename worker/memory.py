"""Giving memory back while idle: the image server beside us needs it more than our allocator does."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Callable
from functools import _lru_cache_wrapper
from typing import Any

from worker.live import Live

QUIET_S = 3.0
"""How long no job was held before memory is given back."""

LARGE = 8_000_000
"""Bytes of what comes from the kernel and goes back to it at once, such as documents with images of jobs that wait."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""As glibc's ``malloc.h`` has them."""


def keep() -> None:
    """At the end of a start: have all that it made looked at no more when garbage is collected.

    A collection that goes through it stops the process, and with it the probes, for a tenth of a second. What an
    earlier start made is freed first.
    """
    return_large()
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def return_large() -> None:
    """Have freed pieces of `LARGE` bytes and more returned at once, where the C library can (glibc).

    By itself it learns from the first large piece to keep the like of it, up to 32 MB each, in a heap with holes.
    """
    mallopt: Any = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE)
        mallopt(_M_TRIM_THRESHOLD, 2 * LARGE)


def start_over() -> None:
    """After a start that failed: have nothing keep what it made.

    FastAPI remembers thousands of the functions that it was given, and with each all that the function knows.
    """
    gc.unfreeze()
    caches = [one for one in gc.get_objects() if isinstance(one, _lru_cache_wrapper)]
    for cache in caches:
        if cache.__module__.startswith("fastapi."):
            cache.cache_clear()
    give_back()


def give_back() -> None:
    """Free what is unreachable, and hand freed pages to the kernel where the C library can (glibc)."""
    gc.collect()
    trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


async def give_back_when_idle(live: Live, act: Callable[[], None] = give_back) -> None:
    """A service: once after each stretch of work. Threads that decode and upload leave tens of megabytes behind."""
    keep()
    while True:
        while not len(live):
            await live.changed()
        await live.empty()
        try:
            async with asyncio.timeout(QUIET_S):
                await live.changed()
        except TimeoutError:
            await asyncio.to_thread(act)
