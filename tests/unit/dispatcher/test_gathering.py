"""Calls that come together are performed together, and nobody suffers for another's."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.store.base import StoreUnavailable
from dispatcher.store.gathering import Gathering
from tests.support.virtual import elapse, virtual
from tests.support.waiting import wait_until
from worker.errors import InternalError


class Desk:
    """Doubles numbers, in batches that wait until they are let go."""

    def __init__(self, *, is_open: bool = True) -> None:
        self.batches: list[list[int]] = []
        self.open = asyncio.Event()
        if is_open:
            self.open.set()

    async def perform(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        await self.open.wait()
        if 13 in items:
            raise InternalError("13")
        if 99 in items:
            raise StoreUnavailable("99")
        return [2 * item for item in items]


def gathering(desk: Desk, most: int = 3) -> Gathering[int, int]:
    return Gathering(desk.perform, most=most, apart_s=0.0, name="test")


async def test_together() -> None:
    """The first goes at once, those that come meanwhile follow together, as many as are allowed, in order."""
    desk = Desk(is_open=False)
    double = gathering(desk)
    calls = [asyncio.create_task(double(1))]
    await wait_until(lambda: desk.batches)
    calls += [asyncio.create_task(double(number)) for number in range(2, 7)]
    desk.open.set()
    assert await asyncio.gather(*calls) == [2, 4, 6, 8, 10, 12]
    assert desk.batches == [[1], [2, 3, 4], [5, 6]]
    assert await double(7) == 14
    await double.aclose()


@virtual
async def test_apart() -> None:
    """After one that was done at once, all that come within the pause are one; a full batch has none behind it."""
    desk, loop = Desk(), asyncio.get_running_loop()
    double = Gathering(desk.perform, most=3, apart_s=0.5, name="test")
    assert await double(1) == 2
    assert loop.time() == 0
    calls = [asyncio.create_task(double(number)) for number in range(2, 7)]
    assert await asyncio.gather(*calls[:3]) == [4, 6, 8]
    assert loop.time() == 0.5
    assert await asyncio.gather(*calls[3:]) == [10, 12]
    assert loop.time() == 0.5
    assert desk.batches == [[1], [2, 3, 4], [5, 6]]
    await elapse(10)
    assert await double(7) == 14
    assert loop.time() == 10.5
    await double.aclose()


async def test_a_mistake_within_one() -> None:
    """Where one of them cannot be done the others are, each alone."""
    double = gathering(Desk(), most=9)
    found = await asyncio.gather(*(double(number) for number in (1, 13, 2)), return_exceptions=True)
    assert [found[0], found[2]] == [2, 4]
    assert isinstance(found[1], InternalError)


async def test_an_outage() -> None:
    """An outage is everybody's, and is not tried again for each."""
    desk = Desk()
    double = gathering(desk, most=9)
    found = await asyncio.gather(*(double(number) for number in (1, 99, 2)), return_exceptions=True)
    assert [type(one) for one in found] == [StoreUnavailable] * 3
    assert len(desk.batches) == 1


async def test_one_gives_up() -> None:
    """A caller who is cancelled takes nothing from the others."""
    desk = Desk(is_open=False)
    double = gathering(desk)
    first, second = asyncio.create_task(double(1)), asyncio.create_task(double(2))
    await wait_until(lambda: desk.batches)
    first.cancel()
    desk.open.set()
    assert await second == 4
    assert first.cancelled() or first.cancelling()


@pytest.mark.parametrize("is_under_way", [False, True])
async def test_closing(is_under_way: bool) -> None:
    """Who still waits when it is closed is told so."""
    desk = Desk(is_open=False)
    double = gathering(desk)
    calls = [asyncio.create_task(double(number)) for number in (1, 2, 3, 4)]
    await (wait_until(lambda: desk.batches) if is_under_way else asyncio.sleep(0))
    await double.aclose()
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one) for one in found] == [StoreUnavailable] * 4
    await double.aclose()
