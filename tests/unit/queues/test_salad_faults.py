"""The driver of the platform's job queue when the service fails: streams that end, lost jobs, outages, tokens."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from grpc import StatusCode
from structlog.testing import capture_logs

from tests.support.certificates import Authority
from tests.support.clock import FakeClock
from tests.support.queues import result_of
from tests.support.salad_bench import BODY, ENDS, NOTHING, NOW, VERBS, Node, benched, handed, impatient
from tests.support.salad_queue import SaladJobQueue
from tests.support.waiting import wait_until
from worker.errors import AuthFailed, ConfigError, LeaseLost, QueueUnavailable
from worker.queues.base import Delivery
from worker.queues.policy import Policy
from worker.queues.salad import SaladQueue, driver
from worker.settings.node import SaladSettings


@pytest.mark.parametrize("status", [None, StatusCode.UNAVAILABLE, StatusCode.CANCELLED])
async def test_a_stream_that_ends_is_opened_anew(status: StatusCode | None) -> None:
    """With the name of the job that is out; it goes on and ends once."""
    async with benched() as bench:
        queue = bench.driver()
        bench.service.submit("a", BODY)
        delivery = await handed(queue)
        bench.service.end_streams(status)
        await wait_until(lambda: len(bench.service.named) == 2)
        await queue.extend(delivery)
        await queue.ack(delivery, result_of("a"))
        assert bench.service.named == ["", "a"]
        assert (bench.service.jobs["a"].status, bench.service.jobs["a"].attempts) == ("succeeded", 1)


async def test_streams_that_end_at_once_make_no_busy_loop() -> None:
    """Each takes longer to come than the one before, and in the end the queue is said to be away."""
    async with benched() as bench:
        bench.service.is_mute = True
        queue = bench.driver(wait=timedelta(minutes=1))
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        while not receiving.done():
            bench.service.end_streams()
            await asyncio.sleep(0)
        with pytest.raises(QueueUnavailable, match="without a word"):
            await receiving
        assert len(bench.service.named) == 3


async def test_a_silent_stream_is_dead() -> None:
    """The watchdog opens another; a receive that has nothing but silent ones says so."""
    async with benched() as bench:
        queue = bench.driver(silence=impatient())
        bench.service.submit("a", BODY)
        delivery = await handed(queue)
        bench.service.is_mute = True
        bench.service.heartbeat_s = 60
        await wait_until(lambda: len(bench.service.named) > 1)
        assert bench.service.named[1] == "a"
        bench.service.is_mute, bench.service.heartbeat_s = False, 0.05
        await queue.extend(delivery)
        await queue.ack(delivery, result_of("a"))
        bench.service.is_mute = True
        away = bench.driver(Node("w2"), silence=impatient())
        with pytest.raises(QueueUnavailable, match="said nothing"):
            await away.receive()


async def test_a_job_that_is_gone_is_lost() -> None:
    """Who was cut off hears it when he is back, and can do nothing more to the job, which another has."""
    async with benched() as bench:
        queue = bench.driver()
        bench.service.submit("a", BODY)
        stale = await handed(queue)
        bench.service.hand_to("a", "w2")
        bench.service.end_streams()
        await wait_until(lambda: bench.service.calls["AcceptJobs", "NOT_FOUND"] == 1)
        with pytest.raises(LeaseLost):
            await queue.extend(stale)
        with pytest.raises(LeaseLost):
            await queue.ack(stale, result_of("a"))
        assert (bench.service.jobs["a"].worker, bench.service.jobs["a"].status) == ("w2", "running")


@pytest.mark.parametrize("end", ENDS)
async def test_the_answer_to_a_job_that_is_gone(end: str) -> None:
    """The service says NOT_FOUND: it was lost."""
    async with benched() as bench:
        queue = bench.driver()
        bench.service.submit("a", BODY)
        delivery = await handed(queue)
        bench.service.hand_to("a", "w2")
        with pytest.raises(LeaseLost):
            await ENDS[end](queue, delivery)


@pytest.mark.parametrize("end", ENDS)
async def test_an_answer_whose_answer_was_lost(end: str) -> None:
    """Told once more, the service knows no such job: it has ended as it was told before."""
    async with benched() as bench:
        queue = bench.driver()
        bench.service.submit("a", BODY)
        delivery = await handed(queue)
        bench.service.losing.append("RejectJob" if end == "nack" else "CompleteJob")
        with pytest.raises(QueueUnavailable):
            await ENDS[end](queue, delivery)
        await ENDS[end](queue, delivery)
        with pytest.raises(LeaseLost):
            await ENDS[end](queue, delivery)


async def test_another_job_in_place_of_ours() -> None:
    """The service has given ours up: it is lost, and the other one is the next receive's."""
    async with benched() as bench:
        queue = bench.driver()
        bench.service.submit("a", BODY)
        lost = await handed(queue)
        bench.service.submit("b", BODY)
        bench.service.hand_to("a", "w2")
        with pytest.raises(LeaseLost):
            await until_lost(queue, lost)
        assert (await handed(queue)).id == "b"


async def until_lost(queue: SaladQueue, delivery: Delivery) -> None:
    """Ask on and on whether it still is ours."""

    async def is_over() -> bool:
        await queue.extend(delivery)
        return False

    await wait_until(is_over)


async def test_a_frozen_worker_believes_nothing() -> None:
    """Nobody asked for longer than the visibility: a stream that seems alive is opened anew before it counts."""
    async with benched() as bench:
        queue = bench.driver(policy=Policy(visibility=NOW))
        bench.service.submit("a", BODY)
        delivery = await handed(queue)
        await queue.extend(delivery)
        assert bench.service.named == ["", "a"]
        bench.service.hand_to("a", "w2")
        with pytest.raises(LeaseLost):
            await queue.extend(delivery)


async def test_extend_waits_for_a_word() -> None:
    """While nobody knows whether the job still is ours, nothing is renewed."""
    async with benched() as bench:
        queue = bench.driver(sure=NOTHING)
        bench.service.submit("a", BODY)
        delivery = await handed(queue)
        bench.service.is_mute = True
        bench.service.end_streams()
        await wait_until(lambda: len(bench.service.named) == 2)
        with pytest.raises(QueueUnavailable, match="has not said"):
            await queue.extend(delivery)
        bench.service.is_mute = False
        bench.service.end_streams()
        await wait_until(lambda: len(bench.service.named) > 2)
        await wait_until(lambda: bench.service.streams == 1)
        await extended(queue, delivery)
        await queue.ack(delivery, result_of("a"))


async def test_a_service_of_few_words() -> None:
    """It has taken the stream if it answers anything else: it need not say so before there is something to say."""
    async with benched() as bench:
        queue = bench.driver(unsaid=timedelta(milliseconds=20))
        bench.service.submit("a", BODY)
        delivery = await handed(queue)
        bench.service.is_mute = True
        bench.service.end_streams()
        await wait_until(lambda: len(bench.service.named) == 2)
        await queue.extend(delivery)
        assert bench.service.calls["RejectJob", "NOT_FOUND"] == 1
        await queue.ack(delivery, result_of("a"))
        assert bench.service.jobs["a"].status == "succeeded"


async def test_a_silent_stream_of_a_service_that_answers_nothing() -> None:
    """It was asked whether it has taken the stream, and nothing is believed."""
    async with benched() as bench:
        queue = bench.driver(unsaid=timedelta(milliseconds=20), sure=NOTHING)
        bench.service.submit("a", BODY)
        delivery = await handed(queue)
        bench.service.is_mute = True
        bench.service.answers.clear()
        bench.service.end_streams()
        await wait_until(lambda: bench.service.asked_to_end == 1)
        with pytest.raises(QueueUnavailable, match="has not said"):
            await queue.extend(delivery)
        bench.service.failing["RejectJob"].append(StatusCode.UNAVAILABLE)
        bench.service.answers.set()
        await extended(queue, delivery)
        assert bench.service.calls["RejectJob", "UNAVAILABLE"] == 1
        await queue.ack(delivery, result_of("a"))


async def extended(queue: SaladQueue, delivery: Delivery) -> None:
    """Keep it, however often that has to be tried."""

    async def tried() -> bool:
        try:
            await queue.extend(delivery)
        except QueueUnavailable:
            return False
        return True

    await wait_until(tried)


async def test_the_service_away_and_back() -> None:
    """Every verb says so; the job in hand is ours again when the service is back."""
    async with benched() as bench:
        queue = bench.driver(sure=NOTHING)
        bench.service.submit("a", BODY)
        delivery = await handed(queue)
        await bench.service.stop()
        for verb in ENDS.values():
            with pytest.raises(QueueUnavailable):
                await verb(queue, delivery)
        with pytest.raises(QueueUnavailable):
            await queue.extend(delivery)
        with pytest.raises(QueueUnavailable):
            await bench.driver(Node("w2")).receive()
        await bench.service.start()
        await extended(queue, delivery)
        await queue.ack(delivery, result_of("a"))
        assert bench.service.jobs["a"].events == ["created", "started", "succeeded"]


@pytest.mark.parametrize("target", ["no-such-host.invalid:443", "127.0.0.1:1"])
async def test_a_service_that_is_not_there(target: str) -> None:
    """No such name, and nobody at the address."""
    async with benched() as bench:
        queue = bench.driver(target=target)
        with pytest.raises(QueueUnavailable, match="UNAVAILABLE"):
            await queue.receive()
        with pytest.raises(QueueUnavailable):
            await queue.check()


@pytest.mark.parametrize("refusal", [StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED])
async def test_an_expired_token(refusal: StatusCode) -> None:
    """A fresh one is asked for, in mid-stream and with an answer; nobody hears of it."""
    async with benched() as bench:
        node = Node()
        queue = bench.driver(node)
        bench.service.refusal = refusal
        bench.service.submit("a", BODY)
        delivery = await handed(queue)
        bench.service.expire_tokens()
        await wait_until(lambda: bench.service.named == ["", "a"])
        assert node.tokens == 2
        bench.service.refused.add(node.token)
        await queue.ack(delivery, result_of("a"))
        assert (bench.service.jobs["a"].status, node.tokens) == ("succeeded", 3)


async def test_a_token_that_is_refused_for_good() -> None:
    """It is the operator's: the credentials failed, in every verb, and the token stands in no message."""
    async with benched() as bench:
        node = Node()
        node.is_stuck = True
        queue = bench.driver(node, sure=NOTHING)
        bench.service.submit("a", BODY)
        delivery = await handed(queue)
        bench.service.expire_tokens()
        await wait_until(lambda: bench.service.calls["AcceptJobs", "UNAUTHENTICATED"] >= 1)
        for verb in VERBS.values():
            with pytest.raises(QueueUnavailable) as caught:
                await verb(queue, delivery)
            assert isinstance(caught.value, AuthFailed)
            assert node.token not in caught.value.message
        other = bench.driver(node)
        with pytest.raises(AuthFailed):
            await other.receive()
        with pytest.raises(AuthFailed) as failed:
            await other.check()
        assert not isinstance(failed.value, QueueUnavailable)


async def test_no_token_is_to_be_had() -> None:
    """The metadata service is away: so is the queue, until it is back."""
    async with benched() as bench:
        node = Node()
        node.has_none = True
        queue = bench.driver(node)
        bench.service.submit("a", BODY)
        with pytest.raises(QueueUnavailable, match="SALAD_METADATA_URI"):
            await queue.receive()
        node.has_none = False
        assert (await handed(queue)).id == "a"


@pytest.mark.parametrize("target", ["", "job-queue", "http://x:1", "a b:1"])
async def test_an_address_that_is_none(target: str) -> None:
    """A mistake in the configuration names its variable."""
    queue = SaladQueue(SaladSettings(service_endpoint=target), Node(), FakeClock())
    with pytest.raises(ConfigError) as caught:
        await queue.check()
    assert [mistake.field for mistake in caught.value.mistakes] == ["SALAD_SERVICE_ENDPOINT"]
    await queue.aclose()


async def test_something_else_at_the_address() -> None:
    """The check says so; elsewhere it may be a proxy's mood, and passes."""
    async with benched() as bench:
        queue = bench.driver()
        bench.service.failing["RejectJob"].append(StatusCode.UNIMPLEMENTED)
        with pytest.raises(ConfigError, match="SALAD_SERVICE_ENDPOINT"):
            await queue.check()
        bench.service.failing["AcceptJobs"].append(StatusCode.UNIMPLEMENTED)
        with pytest.raises(QueueUnavailable):
            await queue.receive()


async def test_no_tls_where_it_is_wanted() -> None:
    """A service that does not speak TLS cannot be reached with it, and is said so."""
    async with benched() as bench:
        queue = SaladQueue(SaladSettings(service_endpoint=bench.service.target), Node(), FakeClock())
        with pytest.raises(QueueUnavailable, match="does not speak TLS"):
            await queue.check()
        await queue.aclose()


async def test_a_certificate_of_an_unknown_authority() -> None:
    """It is refused with the reason, not with a line of the library's code."""
    async with SaladJobQueue(certificate=Authority().vouches_for(["localhost"])) as service:
        target = f"localhost:{service.target.rpartition(':')[2]}"
        queue = SaladQueue(SaladSettings(service_endpoint=target), Node(), FakeClock())
        with pytest.raises(QueueUnavailable) as caught:
            await queue.check()
        await queue.aclose()
    refusal = "its certificate is not to be trusted: unable to get local issuer certificate"
    assert caught.value.message == f"{target}: UNAVAILABLE ({refusal})"


async def test_what_cannot_be_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told in the log, and closing does not wait for it for ever."""
    monkeypatch.setattr(driver, "GIVING_BACK", NOTHING)
    async with benched() as bench:
        queue = bench.driver()
        bench.service.submit("a", BODY)
        await handed(queue)
        await bench.service.stop()
        with capture_logs() as events:
            await queue.aclose()
        assert "late_job_not_given_back" in [one["event"] for one in events]
        monkeypatch.setattr(driver, "CLOSING", NOTHING)
        monkeypatch.setattr(driver, "GIVING_BACK", timedelta(minutes=1))
        await bench.service.start()
        other = bench.driver(Node("w2"))
        bench.service.submit("b", BODY)
        await handed(other)
        bench.service.answers.clear()
        with capture_logs() as events:
            await other.aclose()
        assert "queue_cut_off" in [one["event"] for one in events]
        bench.service.answers.set()
