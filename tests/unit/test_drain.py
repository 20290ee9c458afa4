"""The drain itself: begun once, its guard for each job, and the time that is left."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.virtual import elapse, virtual
from worker.drain import Drain, remaining
from worker.errors import Draining
from worker.live import Hop, Live
from worker.lookahead import Pace
from worker.tasks import cancel_all


@virtual
async def test_nothing_is_due_before_the_drain_begins() -> None:
    """And nobody is told of a deadline that is none."""
    live = Live()
    drain = Drain(live, Pace())
    with live.holding("a") as job:
        due = asyncio.create_task(drain.due(job), name="due")
        over = asyncio.create_task(drain.over(), name="over")
        await elapse(1000)
        assert (drain.begun, drain.left(), due.done(), over.done()) == (False, None, False, False)
        await cancel_all({due, over})


@virtual
async def test_a_job_that_waits_is_due_at_once() -> None:
    """It would only begin what cannot be finished here."""
    live = Live()
    drain = Drain(live, Pace())
    with live.holding("a") as job:
        job.enter(Hop.WAITING)
        drain.begin(100)
        with pytest.raises(Draining):
            await drain.due(job)
    assert asyncio.get_running_loop().time() == 0


@virtual
async def test_a_generation_is_due_as_soon_as_it_turns_out_too_slow() -> None:
    """Judged anew with each report, so that its seconds are not spent in vain."""
    live = Live()
    drain = Drain(live, Pace(generate_s=10, settle_s=1))
    with live.holding("a") as job:
        job.enter(Hop.GENERATE)
        drain.begin(20)
        due = asyncio.create_task(drain.due(job), name="due")
        for fraction in (0.1, 0.2, 0.21):
            await elapse(2)
            job.report(fraction, None)
        with pytest.raises(Draining):
            await due
        assert asyncio.get_running_loop().time() == 6


@virtual
async def test_what_fits_is_due_at_the_deadline_only() -> None:
    """By then it was to be over."""
    live = Live()
    drain = Drain(live, Pace())
    with live.holding("a") as job:
        job.enter(Hop.UPLOAD)
        drain.begin(20)
        assert drain.left() == 20
        with pytest.raises(Draining):
            await drain.due(job)
        assert asyncio.get_running_loop().time() == 20
    with pytest.raises(TimeoutError):
        await drain.over()
    assert drain.left() == 0


@virtual
async def test_what_is_left_of_a_generation_is_taken_from_the_best_that_is_known() -> None:
    """Its own speed, else the server's estimate, else the node's average, else nothing."""
    with Live().holding("a") as job:
        job.enter(Hop.GENERATE)
        await elapse(4)
        assert remaining(job, now=4, pace=Pace()) is None
        assert remaining(job, now=4, pace=Pace(generate_s=10)) == 6
        job.report(0.02, 8.0)
        assert remaining(job, now=6, pace=Pace(generate_s=10)) == 6
        await elapse(6)
        job.report(0.52, 1.0)
        left = remaining(job, now=10, pace=Pace(generate_s=10))
        assert left == pytest.approx(6 * 0.48 / 0.5)
        assert remaining(job, now=100, pace=Pace()) == 0
