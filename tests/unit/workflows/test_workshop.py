"""The operator's code runs for a bounded time, and never in unbounded numbers. Real threads on a real loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time

import pytest

from tests.support.waiting import wait_until
from worker.errors import InvalidJob
from worker.workflows.workshop import AT_ONCE, OVERDUE_MOST, Overdue, Raised, Stuck, Workshop

SHORT_S = 0.05
SPINNING_S = 0.2
LONG_S = 20.0


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "workflow"]


def spin() -> None:
    """A loop that never ends by itself, whatever it may catch."""
    while True:
        try:
            time.monotonic()
        except Exception:
            continue


async def test_what_it_returns_and_raises_comes_out() -> None:
    """Errors of the worker's own tree bare; all others, the exit of a program too, as what they are."""
    shop = Workshop()
    assert await shop.run("a", lambda: 7, limit_s=LONG_S) == 7

    def refuse() -> None:
        raise InvalidJob("no", field="x")

    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(InvalidJob):
        await shop.run("a", refuse, limit_s=LONG_S)
    with pytest.raises(Raised, match="SystemExit") as caught:
        await shop.run("a", leave, limit_s=LONG_S)
    assert isinstance(caught.value.error, SystemExit)


async def test_a_loop_that_does_not_end_is_ended() -> None:
    """Its caller hears it in time, and the thread is not left to burn the processor."""
    with pytest.raises(Overdue):
        await Workshop().run("a", spin, limit_s=SPINNING_S)
    await wait_until(lambda: not workers())


async def test_calls_that_wait_in_c_cannot_pile_up() -> None:
    """After a few no further one of the owner is begun until they have ended; another owner's are."""
    shop, go = Workshop(), threading.Event()
    try:
        while len(workers()) < OVERDUE_MOST:
            with pytest.raises((Overdue, Stuck)):
                await shop.run("a", go.wait, limit_s=SHORT_S)
        with pytest.raises(Stuck):
            await shop.run("a", lambda: 1, limit_s=LONG_S)
        assert len(workers()) == OVERDUE_MOST
        assert await shop.run("b", lambda: 2, limit_s=LONG_S) == 2
    finally:
        go.set()

    async def begun_again() -> bool:
        try:
            return await shop.run("a", lambda: True, limit_s=LONG_S)
        except Stuck:
            return False

    await wait_until(begun_again)


async def test_only_so_many_of_an_owner_run_at_a_time() -> None:
    """The others wait for them, and are no less done."""
    shop, go, running = Workshop(), threading.Event(), threading.Semaphore(0)

    def work() -> bool:
        running.release()
        return go.wait(LONG_S)

    tasks = [asyncio.create_task(shop.run("a", work, limit_s=LONG_S), name=f"w{n}") for n in range(AT_ONCE + 3)]
    await wait_until(lambda: len(workers()) == AT_ONCE)
    assert await shop.run("b", lambda: 1, limit_s=LONG_S) == 1
    assert len(workers()) == AT_ONCE
    go.set()
    assert await asyncio.gather(*tasks) == [True] * (AT_ONCE + 3)
    assert running._value == AT_ONCE + 3


async def test_a_caller_who_leaves_has_it_stopped() -> None:
    """As if its time were over."""
    task = asyncio.create_task(Workshop().run("a", spin, limit_s=LONG_S), name="caller")
    await wait_until(lambda: bool(workers()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_until(lambda: not workers())


async def test_the_caller_s_context_is_there() -> None:
    """So that lines that it logs carry the job's id."""
    job = contextvars.ContextVar[str]("job")
    job.set("j1")
    assert await Workshop().run("a", job.get, limit_s=LONG_S) == "j1"
