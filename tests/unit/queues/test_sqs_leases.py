"""Leases by SQS's own rules: from when they were asked for, by one request at a time, for twelve hours."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import pytest
import structlog

from tests.support.clock import FakeClock
from tests.support.queues import result_of, taken
from tests.support.sqs import Hung, Line, Server, moved_time, taking
from tests.support.waiting import wait_until
from worker.errors import LeaseLost

pytest_plugins = ("tests.support.sqs_fixtures",)

NOW = timedelta(0)
HOUR = timedelta(hours=1)
DOCUMENT = '{"id": "a", "params": {"prompt": "a cat"}}'


@pytest.fixture
def time(sqs_server: Server) -> Iterator[FakeClock]:
    """The time that the server lives by."""
    clock = FakeClock()
    with moved_time(clock):
        yield clock


async def test_a_lease_that_was_not_renewed_is_lost_unasked(sqs_server: Server, line: Line, time: FakeClock) -> None:
    """An old receipt is taken by a standard queue though another holds the message: it is never shown."""
    line.put(DOCUMENT)
    async with (
        taking(line, seconds=lambda: time.now().timestamp()) as queue,
        taking(line, seconds=lambda: time.now().timestamp()) as other,
    ):
        stale = await taken(queue)
        time.advance(timedelta(seconds=121))
        fresh = await taken(other)
        before = sqs_server.bent.calls.copy()
        with pytest.raises(LeaseLost):
            await queue.ack(stale, result_of("a"))
        assert sqs_server.bent.calls == before
        await other.extend(fresh)
    assert line.counts() == (0, 1)


async def test_a_message_that_lay_in_a_frozen_process_is_no_lease(sqs_server: Server, line: Line) -> None:
    """Its time counts from when it was asked for, not from when the process woke up."""
    line.put(DOCUMENT)
    seconds = [0.0]
    hung = Hung(after=True)
    sqs_server.bent.do("ReceiveMessage", hung, times=1)
    async with taking(line, seconds=lambda: seconds[0]) as queue:
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        await wait_until(hung.began.is_set)
        seconds[0] = 121.0
        hung.release()
        delivery = (await receiving).delivery
        assert delivery is not None
        with pytest.raises(LeaseLost):
            await queue.extend(delivery)


async def test_what_comes_too_late_is_not_given_back(sqs_server: Server, line: Line) -> None:
    """Another may hold it by now, and an old receipt would take it away from him."""
    line.put(DOCUMENT)
    seconds = [0.0]
    hung = Hung(after=True)
    sqs_server.bent.do("ReceiveMessage", hung, times=1)
    async with taking(line, seconds=lambda: seconds[0]) as queue:
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        await wait_until(hung.began.is_set)
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
        seconds[0] = 121.0
        hung.release()
        await queue.settled()
    assert line.counts() == (0, 1)


async def test_a_renewal_under_way_does_not_overtake(sqs_server: Server, line: Line) -> None:
    """What is given back stays given back, though SQS is still about to renew its lease."""
    line.put(DOCUMENT)
    hung = Hung()
    async with taking(line) as queue:
        delivery = await taken(queue)
        sqs_server.bent.do("ChangeMessageVisibility", hung, times=1)
        renewing = asyncio.create_task(queue.extend(delivery), name="renewing")
        await wait_until(hung.began.is_set)
        giving = asyncio.create_task(queue.nack(delivery, NOW, "draining", charged=False), name="giving")
        done, _ = await asyncio.wait({giving}, timeout=0.1)
        hung.release()
        await asyncio.gather(renewing, giving)
        assert line.counts() == (1, 0)
        assert not done
        with pytest.raises(LeaseLost):
            await queue.extend(delivery)


async def test_twelve_hours_are_all_there_is(line: Line, time: FakeClock) -> None:
    """No more is ever asked for: who would need more loses the lease, and says so."""
    line.put(DOCUMENT)
    with structlog.testing.capture_logs() as logs:
        async with taking(line, visibility_s=43_200, seconds=lambda: time.now().timestamp()) as queue:
            delivery = await taken(queue)
            assert delivery.visibility == 6 * HOUR
            time.advance(5 * HOUR)
            await queue.extend(delivery)
            time.advance(2 * HOUR)
            with pytest.raises(LeaseLost, match="12 hours"):
                await queue.extend(delivery)
    assert [one["event"] for one in logs] == ["lease_at_its_end"]


async def test_a_delay_ends_within_the_twelve_hours(line: Line, time: FakeClock) -> None:
    """SQS refuses to hide a message for longer in all."""
    line.put(DOCUMENT)
    async with taking(line, visibility_s=43_200, seconds=lambda: time.now().timestamp()) as queue:
        delivery = await taken(queue)
        time.advance(5 * HOUR)
        await queue.nack(delivery, 10 * HOUR, "disk_full", charged=False)
        time.advance(7 * HOUR)
        assert (await taken(queue)).deliveries == 2
