"""The worker's side of an SQS queue: one poll, leases by SQS's own rules, dead letters."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from datetime import timedelta

import pytest
import structlog

from tests.support.clock import START, FakeClock
from tests.support.queues import result_of, taken
from tests.support.sqs import Hung, Line, Lost, Refused, Server, made_line, moved_time, submitting, taking
from tests.support.waiting import wait_until
from worker.errors import QueueUnavailable
from worker.queues.policy import Policy

pytest_plugins = ("tests.support.sqs_fixtures",)

NOW = timedelta(0)
HOUR = timedelta(hours=1)
FAILED = result_of("a", "failed", code="invalid_job")
DOCUMENT = '{"id": "a", "params": {"prompt": "a cat"}}'


@pytest.fixture
def time(sqs_server: Server) -> Iterator[FakeClock]:
    """The time that the server lives by."""
    clock = FakeClock()
    with moved_time(clock):
        yield clock


async def test_a_message_of_another_program(line: Line) -> None:
    """It is called by the id that SQS gave it, and counted as SQS counts; nobody knows whether its job was done."""
    message_id = line.put(DOCUMENT)
    async with taking(line) as queue:
        delivery = await taken(queue)
    assert (delivery.id, delivery.body) == (message_id, DOCUMENT.encode())
    assert (delivery.deliveries, delivery.redelivered, delivery.attempts_most) == (1, None, 3)
    assert (delivery.last_attempt, delivery.attempts) == (None, ())


async def test_a_redelivery_keeps_its_id_and_its_age(line: Line, time: FakeClock) -> None:
    """What names the job and when it was queued is the same at each hand-over; the count goes up."""
    line.put(DOCUMENT)
    async with taking(line) as queue:
        first = await taken(queue)
        time.advance(HOUR)
        await queue.nack(first, NOW, "disk_full", charged=False)
        second = await taken(queue)
    assert (second.id, second.queued_at) == (first.id, START)
    assert (second.deliveries, second.redelivered) == (2, True)


async def test_settling_deletes(line: Line) -> None:
    """A job that is over is gone, and no dead letter."""
    line.put(DOCUMENT)
    async with taking(line) as queue:
        await queue.ack(await taken(queue), result_of("a"))
    assert (line.counts(), line.counts(dead=True)) == ((0, 0), (0, 0))


async def test_a_delay_hides(line: Line, time: FakeClock) -> None:
    """A job that is given back for later waits that long."""
    line.put(DOCUMENT)
    async with taking(line) as queue:
        await queue.nack(await taken(queue), timedelta(seconds=10), "disk_full", charged=False)
        assert line.counts() == (0, 1)
        assert (await queue.receive()).delivery is None
        time.advance(timedelta(seconds=11))
        assert (await taken(queue)).deliveries == 2


async def test_a_fifo_queue(sqs_server: Server) -> None:
    """Each job is a group of its own: one that is held keeps no other waiting."""
    line = made_line(sqs_server, fifo=True, dead_after=5)
    async with taking(line) as queue, submitting(line) as producer:
        for job_id in ("a", "b", "a"):
            assert await producer.submit(job_id, DOCUMENT.encode())
        first, second = await taken(queue), await taken(queue)
        assert {first.id, second.id} == {"a", "b"}
        assert (await queue.receive()).delivery is None
        await queue.nack(first, NOW, "draining", charged=False)
        again = await taken(queue)
        assert (again.id, again.deliveries) == (first.id, 2)
        await queue.reject(again, FAILED)
        await queue.ack(second, result_of("b"))
    assert line.counts() == (0, 0)
    [letter] = line.dead()
    assert letter["Attributes"]["MessageGroupId"] == first.id


async def test_duplicates_are_deliveries_of_their_own(line: Line) -> None:
    """What was sent twice, or comes in another order, is settled message by message."""
    async with taking(line) as queue, submitting(line) as producer:
        for job_id in ("a", "b", "a"):
            await producer.submit(job_id, DOCUMENT.encode())
        found = [await taken(queue) for _ in range(3)]
        assert sorted(one.id for one in found) == ["a", "a", "b"]
        for delivery in reversed(found):
            await queue.extend(delivery)
            await queue.ack(delivery, result_of(delivery.id))
    assert line.counts() == (0, 0)


async def test_a_cancelled_receive_gives_back_what_comes(sqs_server: Server, line: Line) -> None:
    """It waits again at once; that it was received cannot be undone."""
    line.put(DOCUMENT)
    hung = Hung(after=True)
    sqs_server.bent.do("ReceiveMessage", hung, times=1)
    async with taking(line) as queue:
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        await wait_until(hung.began.is_set)
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
        hung.release()
        await queue.settled()
        assert line.counts() == (1, 0)
        delivery = await taken(queue)
    assert (delivery.deliveries, delivery.redelivered) == (2, True)


async def test_the_next_receive_takes_a_poll_over(sqs_server: Server, line: Line) -> None:
    """A poll whose receiver was cancelled brings its message to the next one, uncounted."""
    line.put(DOCUMENT)
    hung = Hung(after=True)
    sqs_server.bent.do("ReceiveMessage", hung, times=1)
    async with taking(line) as queue:
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        await wait_until(hung.began.is_set)
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
        second = asyncio.create_task(queue.receive(), name="receiving")
        hung.release()
        delivery = (await second).delivery
    assert delivery is not None
    assert delivery.deliveries == 1
    assert sqs_server.bent.calls["ReceiveMessage"] == 1


async def test_closing_waits_for_what_was_to_come(sqs_server: Server, line: Line) -> None:
    """A message that comes after the last receive is not left hidden."""
    line.put(DOCUMENT)
    hung = Hung(after=True)
    sqs_server.bent.do("ReceiveMessage", hung, times=1)
    async with taking(line) as queue:
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        await wait_until(hung.began.is_set)
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
        closing = asyncio.create_task(queue.aclose(), name="closing")
        hung.release()
        await closing
    assert line.counts() == (1, 0)


@pytest.mark.parametrize("seed", range(2))
async def test_receives_cancelled_at_any_instant_leave_nothing_held(line: Line, seed: int) -> None:
    """Whatever was handed over then is there for others, all of it."""
    rng = random.Random(seed)
    ids = {line.put(DOCUMENT) for _ in range(3)}
    async with taking(line, policy=Policy(max_deliveries=1000)) as queue:
        line.set(RedrivePolicy="")
        loop = asyncio.get_running_loop()
        for _ in range(30):
            receiving = asyncio.create_task(queue.receive(), name="receiving")
            loop.call_later(rng.uniform(0, 0.01), receiving.cancel)
            [outcome] = await asyncio.gather(receiving, return_exceptions=True)
            if isinstance(outcome, BaseException):
                assert isinstance(outcome, asyncio.CancelledError)
            elif outcome.delivery is not None:
                await queue.nack(outcome.delivery, NOW, "disk_full", charged=False)
        await queue.settled()
        assert line.counts() == (3, 0)
        assert {(await taken(queue)).id for _ in range(3)} == ids


async def test_what_cannot_be_given_back_is_told(sqs_server: Server, line: Line) -> None:
    """It comes back by itself when its lease is over."""
    line.put(DOCUMENT)
    hung = Hung(after=True)
    sqs_server.bent.do("ReceiveMessage", hung, times=1)
    sqs_server.bent.do("ChangeMessageVisibility", Refused("InternalFailure", 500))
    with structlog.testing.capture_logs() as logs:
        async with taking(line, visibility_s=1) as queue:
            receiving = asyncio.create_task(queue.receive(), name="receiving")
            await wait_until(hung.began.is_set)
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
            hung.release()
            await queue.settled()
    assert [one["event"] for one in logs] == ["late_job_not_given_back"]


async def test_dead_letters_say_why(line: Line) -> None:
    """The message as it came, with code, fault, reason, worker and count."""
    line.put(DOCUMENT, MessageAttributes={"trace": {"DataType": "String", "StringValue": "t-1"}})
    async with taking(line) as queue:
        await queue.reject(await taken(queue), FAILED)
    assert line.counts() == (0, 0)
    [letter] = line.dead()
    told = {name: value["StringValue"] for name, value in letter["MessageAttributes"].items()}
    assert letter["Body"] == DOCUMENT
    assert told == {
        "trace": "t-1",
        "sd-code": "invalid_job",
        "sd-fault": "job",
        "sd-message": "why",
        "sd-worker": "w1",
        "sd-deliveries": "1",
    }


async def test_without_dead_letters_what_failed_is_deleted(sqs_server: Server) -> None:
    """Its owner has been told, and the store keeps the failure."""
    line = made_line(sqs_server)
    line.put(DOCUMENT)
    async with taking(line) as queue:
        assert "no dead-letter queue" in await queue.check()
        await queue.reject(await taken(queue), FAILED)
    assert line.counts() == (0, 0)


async def test_dead_letters_that_we_may_not_send_are_left_to_sqs(sqs_server: Server) -> None:
    """It is handed out no more here, until SQS has moved it by its own rule; the log tells once what is missing."""
    line = made_line(sqs_server, dead_after=3)
    line.put(DOCUMENT)
    line.put(DOCUMENT)
    sqs_server.bent.do("SendMessage", Refused("AccessDenied", 403))
    with structlog.testing.capture_logs() as logs:
        async with taking(line) as queue:
            for _ in range(2):
                await queue.reject(await taken(queue), FAILED)
            while sum(line.counts()):
                assert (await queue.receive()).delivery is None
                await queue.settled()
    assert len(line.dead()) == 2
    assert [one["event"] for one in logs].count("dead_letter_refused") == 1


async def test_dead_letters_whose_queue_is_gone(sqs_server: Server, line: Line) -> None:
    """Nothing would ever move the message: it is deleted."""
    line.put(DOCUMENT)
    line.client().delete_queue(QueueUrl=line.dead_url or "")
    with structlog.testing.capture_logs() as logs:
        async with taking(line) as queue:
            await queue.reject(await taken(queue), FAILED)
    assert line.counts() == (0, 0)
    assert [one["event"] for one in logs] == ["dead_letters_gone"]


@pytest.mark.parametrize(
    "deed", [Refused("RequestThrottled"), Refused("InternalFailure", 500), Lost()], ids=["throttled", "failed", "lost"]
)
async def test_a_dead_letter_that_is_not_taken_now_is_sent_again(
    sqs_server: Server, line: Line, deed: Refused | Lost
) -> None:
    """The job stays held until it is safe among the dead letters; an answer that was lost makes two of it."""
    line.put(DOCUMENT)
    sqs_server.bent.do("SendMessage", deed, times=1)
    async with taking(line) as queue:
        delivery = await taken(queue)
        with pytest.raises(QueueUnavailable):
            await queue.reject(delivery, FAILED)
        assert line.counts() == (0, 1)
        await queue.reject(delivery, FAILED)
    assert line.counts() == (0, 0)
    assert len(line.dead()) == (2 if isinstance(deed, Lost) else 1)


async def test_an_answer_that_was_lost_is_asked_for_again(sqs_server: Server, line: Line) -> None:
    """Deleting twice is no error."""
    line.put(DOCUMENT)
    sqs_server.bent.do("DeleteMessage", Lost(), times=1)
    async with taking(line) as queue:
        delivery = await taken(queue)
        with pytest.raises(QueueUnavailable):
            await queue.ack(delivery, result_of("a"))
        await queue.ack(delivery, result_of("a"))
    assert line.counts() == (0, 0)


async def test_the_redrive_policy_limits_deliveries_too(sqs_server: Server) -> None:
    """The last receive before SQS moves the message is the last delivery, and check tells of the smaller number."""
    line = made_line(sqs_server, dead_after=2)
    line.put(DOCUMENT)
    async with taking(line) as queue:
        assert "maxReceiveCount=2 is less than WORKER_QUEUE_MAX_DELIVERIES=4" in await queue.check()
        first = await taken(queue)
        await queue.nack(first, NOW, "internal", charged=True)
        second = await taken(queue)
    assert (first.last_delivery, second.last_delivery, second.over_limit) == (False, True, False)


async def test_a_redrive_policy_that_changes_is_seen(sqs_server: Server) -> None:
    """The queue is asked again from time to time; while it does not tell, what it said stays true."""
    line = made_line(sqs_server, dead_after=1)
    seconds = [0.0]
    async with taking(line, seconds=lambda: seconds[0], visibility_s=10_000) as queue:
        line.put(DOCUMENT)
        assert (await taken(queue)).last_delivery is True
        policy = json.loads(
            line.client().get_queue_attributes(QueueUrl=line.url, AttributeNames=["All"])["Attributes"]["RedrivePolicy"]
        )
        line.set(RedrivePolicy=json.dumps({**policy, "maxReceiveCount": "9"}))
        line.put(DOCUMENT)
        seconds[0] = 301.0
        sqs_server.bent.do("GetQueueAttributes", Refused("RequestThrottled"), times=1)
        assert (await taken(queue)).last_delivery is True
        line.put(DOCUMENT)
        assert (await taken(queue)).last_delivery is False
