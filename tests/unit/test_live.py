"""The register of held jobs, how far each is, and the times of its hops."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from tests.support.virtual import elapse, virtual
from worker.errors import JobCancelled
from worker.live import INSTANT_S, RECENT_MOST, SPANS_MOST, Hop, Live, Past, Span
from worker.metrics import HOP_SECONDS, Metrics
from worker.stages import StageClock
from worker.tasks import cancel_all


@virtual
async def test_jobs_are_listed_in_the_order_of_their_coming_while_they_are_held() -> None:
    """And gone afterwards, whatever ended them."""
    live = Live()
    with live.holding("a"), live.holding("b"):
        assert [job.id for job in live] == ["a", "b"]
        assert len(live) == 2
    with pytest.raises(KeyError), live.holding("c"):
        raise KeyError
    assert len(live) == 0
    await live.empty()


@virtual
async def test_a_second_delivery_owns_its_job_only_after_the_first() -> None:
    """Two deliveries that come to the same job by different names."""
    live = Live()
    with live.holding("d2") as second:
        with live.holding("d1") as first:
            await live.own(first, "job")
            waiting = asyncio.create_task(live.own(second, "job"), name="own")
            await elapse(1)
            assert (first.id, second.id, waiting.done()) == ("job", "d2", False)
        await waiting
        assert second.id == "job"


@virtual
async def test_cancelling_reaches_every_delivery_of_the_job() -> None:
    """And says whether there was one."""
    live = Live()
    with live.holding("a") as job, live.holding("b") as other:
        assert live.cancel("a")
        assert not live.cancel("c")
        with pytest.raises(JobCancelled):
            await job.cancelled()
        heard = asyncio.create_task(other.cancelled(), name="guard")
        await elapse(1)
        assert not heard.done()
        await cancel_all({heard})


@virtual
async def test_a_committed_job_cannot_be_cancelled_any_more() -> None:
    """The guard is spent instead of raising."""
    with Live().holding("a") as job:
        job.commit()
        job.cancel()
        await job.cancelled()


@virtual
async def test_every_change_is_told() -> None:
    """Coming, going, hops and progress."""
    live, told = Live(), 0

    async def count() -> None:
        nonlocal told
        while True:
            await live.changed()
            told += 1

    counting = asyncio.create_task(count(), name="count")
    await elapse(1)
    with live.holding("a") as job:
        await elapse(1)
        job.enter(Hop.GENERATE)
        await elapse(1)
        job.report(0.5, None)
        await elapse(1)
    await elapse(1)
    assert told == 4
    await cancel_all({counting})


@virtual
async def test_a_report_without_progress_is_no_news_of_the_time() -> None:
    """The time of the last growth stays, and what was known of a hop ends with it."""
    with Live().holding("a") as job:
        job.enter(Hop.GENERATE)
        for fraction in (0.0, 0.2, 0.2, 0.6, 0.6):
            await elapse(1)
            job.report(fraction, 9.0)
        assert (job.progress, job.progress_from, job.progress_at, job.eta_s) == (0.6, (2.0, 0.2), 4.0, 9.0)
        job.enter(Hop.IMAGES)
        assert (job.progress, job.progress_from, job.eta_s) == (None, None, None)


@virtual
async def test_hops_are_timed_and_a_hop_entered_twice_adds_up() -> None:
    """Also when it ends badly."""
    live, metrics = Live(), Metrics()
    with live.holding("a") as job:
        clock = StageClock(job, metrics)
        with clock.hop(Hop.GENERATE):
            await elapse(2)
        with pytest.raises(TimeoutError):
            await _timed_out(clock)
        await elapse(1)
        assert clock.seconds == {Hop.GENERATE: 5}
        assert clock.total == 6
    assert metrics.value(HOP_SECONDS + "_count", hop="generate") == 2


async def _timed_out(clock: StageClock) -> None:
    with clock.hop(Hop.GENERATE):
        async with asyncio.timeout(3):
            await asyncio.Event().wait()


def test_the_hops_behind_the_engine_are_the_last_three() -> None:
    """What is there counts against another bound than what needs the engine."""
    assert [hop for hop in Hop if hop.is_past_engine] == [Hop.IMAGES, Hop.UPLOAD, Hop.SETTLE]


@virtual
async def test_who_waits_for_models_is_parked_from_an_instant_on() -> None:
    """A wait that is none parks nobody; everybody who looks is told of both ends, and how long it took in all."""
    live = Live()
    with live.holding("a") as job:
        with job.parking():
            await elapse(INSTANT_S / 2)
            assert (job.parked, live.parked) == (False, 0)
        changed = asyncio.create_task(live.changed(), name="changed")
        with job.parking():
            await elapse(INSTANT_S / 2)
            assert not changed.done()
            await elapse(INSTANT_S)
            assert changed.done()
            assert (job.parked, live.parked) == (True, 1)
            changed = asyncio.create_task(live.changed(), name="changed")
            await elapse(10)
        await changed
        assert (job.parked, live.parked) == (False, 0)
        assert job.models_s == pytest.approx(10 + 2 * INSTANT_S)


@virtual
async def test_who_waits_in_vain_is_parked_no_more() -> None:
    """Whatever ends the wait."""
    with Live().holding("a") as job:
        job.cancel()
        with pytest.raises(JobCancelled), job.parking():
            await after(1, job.cancelled())
        assert (job.parked, job.models_s) == (False, 1)


@virtual
async def test_the_last_jobs_are_remembered_with_their_hops() -> None:
    """When each hop began and ended, and how the job did; one of which nobody said how was abandoned."""
    live, metrics = Live(), Metrics()
    with live.holding("a") as job:
        clock = StageClock(job, metrics)
        with clock.hop(Hop.MODELS):
            await elapse(2)
        await elapse(1)
        with clock.hop(Hop.GENERATE):
            await elapse(4)
        job.ended("failed", "engine_oom")
    with live.holding("b"):
        await elapse(1)
    began = live.recent[0].since
    spans = (Span(Hop.MODELS, began, began + 2), Span(Hop.GENERATE, began + 3, began + 7))
    assert list(live.recent) == [
        Past("a", "failed", "engine_oom", began, began + 7, spans),
        Past("b", "abandoned", None, began + 7, began + 8, ()),
    ]


@virtual
async def test_little_is_remembered() -> None:
    """So many jobs, and so many hops of each, however long the worker runs."""
    live = Live()
    for number in range(RECENT_MOST + 1):
        with live.holding(f"job-{number}") as job:
            for _ in range(SPANS_MOST + 1):
                job.passed(Span(Hop.UPLOAD, 0, 1))
    assert [len(live.recent), live.recent[0].id, len(live.recent[0].spans)] == [RECENT_MOST, "job-1", SPANS_MOST]


@virtual
async def test_a_look_is_offered_only_during_its_hop() -> None:
    """What the server shows belongs to the generation that runs."""

    async def look() -> bytes:
        return b""

    offered = []
    with Live().holding("a") as job:
        for news in (look, None, look):
            job.report(0.5, None, news)
            offered.append(job.preview)
        job.enter(Hop.IMAGES)
        offered.append(job.preview)
    assert offered == [look, None, look, None]


async def after(seconds: float, then: Coroutine[Any, Any, None]) -> None:
    await elapse(seconds)
    await then
