"""The virtual loop that scenarios stand on: time jumps, threads hold it still, and nothing hangs."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from tests.support.virtual import START, NothingWillHappen, VirtualClock, elapse, run, virtual


@virtual
async def test_an_hour_passes_in_no_time() -> None:
    """Loop time and wall time go together."""
    loop, clock = asyncio.get_running_loop(), VirtualClock()
    began = time.perf_counter()
    await elapse(3600)
    assert loop.time() == 3600
    assert (clock.now() - START).total_seconds() == 3600
    assert time.perf_counter() - began < 60


@virtual
async def test_timers_end_in_their_order() -> None:
    """Whatever the order in which they were made; equal ones as they were made."""
    ended: list[str] = []

    async def after(seconds: float, name: str) -> None:
        await elapse(seconds)
        ended.append(name)

    await asyncio.gather(after(30, "c"), after(10, "a"), after(20, "b1"), after(20, "b2"))
    assert ended == ["a", "b1", "b2", "c"]


@virtual
async def test_a_timeout_ends_at_its_time() -> None:
    """`asyncio.timeout` jumps like every other timer."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(90):
            await asyncio.Event().wait()
    assert asyncio.get_running_loop().time() == 90


@virtual
async def test_time_stands_still_while_a_thread_works() -> None:
    """A timer does not overtake work that takes real time."""
    release = threading.Event()
    ended: list[str] = []

    async def threaded() -> None:
        await asyncio.to_thread(release.wait, 10)
        ended.append("thread")

    async def timed() -> None:
        await elapse(5)
        ended.append("timer")

    both = asyncio.gather(threaded(), timed())
    threading.Timer(0.02, release.set).start()
    await both
    assert ended == ["thread", "timer"]


def test_a_wait_that_nothing_can_end_is_an_error() -> None:
    """No timer, no thread: it says so instead of hanging."""

    async def forever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(NothingWillHappen):
        run(forever())


def test_a_task_left_behind_is_an_error() -> None:
    """A test names what it forgot."""
    left: list[asyncio.Task[None]] = []

    async def careless() -> None:
        left.append(asyncio.create_task(elapse(10), name="forgotten"))

    with pytest.raises(AssertionError, match="forgotten"):
        run(careless())


def test_what_a_body_raises_comes_out() -> None:
    """And its result too."""

    async def breaks() -> None:
        raise KeyError("why")

    async def answers() -> int:
        await elapse(1)
        return 7

    with pytest.raises(KeyError, match="why"):
        run(breaks())
    assert run(answers()) == 7
