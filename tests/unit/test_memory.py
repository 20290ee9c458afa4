"""Memory is given back after work, and only then."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref
from pathlib import Path

from fastapi import FastAPI

from tests.support.virtual import elapse, virtual
from worker.live import Live
from worker.memory import LARGE, QUIET_S, give_back, give_back_when_idle, keep, return_large, start_over
from worker.tasks import cancel_all


class Knot:
    """Garbage that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


def test_what_is_unreachable_is_freed() -> None:
    """Cycles too, on every C library."""
    gc.disable()
    try:
        knot = weakref.ref(Knot())
        assert knot() is not None
        give_back()
        assert knot() is None
    finally:
        gc.enable()


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_large_pieces_are_returned_as_soon_as_they_are_freed() -> None:
    """Also the second time, and between small ones that stay."""
    return_large()
    stay = list[bytearray]()
    before = resident()
    for _ in range(3):
        large = list[bytearray]()
        for _ in range(8):
            large.append(bytearray(b"x") * (2 * LARGE))
            stay.append(bytearray(b"x") * 5000)
        del large
    assert resident() - before < 2 * LARGE
    assert len(stay) == 24


@virtual
async def test_memory_is_given_back_once_after_each_stretch_of_work() -> None:
    """Not before the first job, not between jobs that follow each other, and not again while nothing happens."""
    live, times = Live(), list[float]()
    loop = asyncio.get_running_loop()
    service = asyncio.create_task(give_back_when_idle(live, lambda: times.append(loop.time())), name="memory")
    await elapse(100)
    assert times == []
    for _ in range(3):
        with live.holding("a"):
            await elapse(10)
        await elapse(QUIET_S / 2)
    assert times == []
    await elapse(100)
    assert times == [100 + 3 * 10 + 2 * QUIET_S / 2 + QUIET_S]
    with live.holding("b"):
        await elapse(7)
    await elapse(100)
    assert len(times) == 2
    await cancel_all({service})


def test_what_the_start_made_is_looked_at_no_more() -> None:
    """The collector passes it over, also when memory is given back; what comes later it frees as ever."""
    held = Knot()
    knot = weakref.ref(held)
    try:
        keep()
        assert gc.get_freeze_count() > 10_000
        del held
        later = weakref.ref(Knot())
        give_back()
        assert later() is None
        assert knot() is not None
    finally:
        gc.unfreeze()
    gc.collect()
    assert knot() is None


def test_what_an_earlier_start_made_is_freed_by_the_next() -> None:
    """A node that was blocked may start a dozen times."""
    held = Knot()
    knot = weakref.ref(held)
    try:
        keep()
        del held
        keep()
        assert knot() is None
    finally:
        gc.unfreeze()


def test_an_application_of_a_start_that_failed_is_freed() -> None:
    """Though FastAPI remembers its routes in caches of its own, and they what they look at."""
    held = Knot()
    knot = weakref.ref(held)

    def routed(seen: Knot) -> FastAPI:
        app = FastAPI()

        @app.get("/")
        async def show() -> bool:
            return seen.itself is seen

        return app

    app = routed(held)
    keep()
    del app, held
    gc.unfreeze()
    gc.collect()
    assert knot() is not None
    start_over()
    assert knot() is None
