"""Structured concurrency that keeps a job's own error bare."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
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
