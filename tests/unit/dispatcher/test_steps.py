"""Work in steps."""

from __future__ import annotations

import asyncio

from dispatcher.steps import Steps, beside, whole


def counted(to: int, seen: list[int]) -> Steps[int]:
    for number in range(to):
        seen.append(number)
        yield
    return to


def test_whole() -> None:
    """All of it at once, and what was made."""
    seen: list[int] = []
    assert whole(counted(3, seen)) == 3
    assert seen == [0, 1, 2]


async def test_beside() -> None:
    """Others have their turn after each step."""
    seen: list[int] = []
    first, second = asyncio.create_task(beside(counted(2, seen))), asyncio.create_task(beside(counted(2, seen)))
    assert [await first, await second] == [2, 2]
    assert seen == [0, 0, 1, 1]
