"""Waiting for a condition instead of for time."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable


async def wait_until(
    check: Callable[[], object | Awaitable[object]], timeout: float = 10, story: Callable[[], str] | None = None
) -> None:
    """Return as soon as the check is true; `TimeoutError`, with the story, when it does not become so in time."""
    try:
        async with asyncio.timeout(timeout):
            while True:
                found = check()
                if inspect.isawaitable(found):
                    found = await found
                if found:
                    return
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise TimeoutError(story() if story is not None else f"not so after {timeout:g} s") from None
