"""The driver of the platform's job queue against a service on a real socket."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import timedelta

import pytest
from grpc import StatusCode

from tests.support.queues import result_of
from tests.support.salad_bench import BODY, ENDS, NOW, VERBS, Node, benched, handed
from tests.support.waiting import wait_until
from worker.errors import LeaseLost, QueueUnavailable
from worker.queues.base import Leaving
from worker.queues.policy import Policy


async def test_a_delivery_says_what_the_platform_tells() -> None:
    """Its id, its input as it was, and where it is aimed; that it keeps no causes, and its limit of four."""
    async with benched() as bench:
        bench.service.submit("a", b'{"any": [1]}', path="/prompt")
        queue = bench.driver(policy=Policy(visibility=timedelta(seconds=7), max_attempts=9))
        delivery = await handed(queue)
        assert (delivery.id, delivery.body, queue.path_of(delivery)) == ("a", b'{"any": [1]}', "/prompt")
        assert (delivery.visibility, delivery.attempts_most) == (timedelta(seconds=7), 4)
        assert (delivery.redelivered, delivery.deliveries, delivery.last_attempt, delivery.queued_at) == (None,) * 4
        assert delivery.run == "a"
        assert (queue.capacity, queue.can_delay) == (1, False)
        assert all(agent.startswith("sd-worker/") for agent in bench.service.agents)


async def test_the_stream_is_open_while_somebody_asks() -> None:
    """Not before the first receive, not long after the last, and at once no more after one that was cancelled."""
    async with benched() as bench:
        queue = bench.driver(wait=timedelta(milliseconds=200), linger=timedelta(milliseconds=200))
        assert await queue.check()
        assert bench.service.named == []
        received = await queue.receive()
        assert received.delivery is None
        assert bench.service.streams == 1
        await wait_until(lambda: bench.service.streams == 0)
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        await wait_until(lambda: bench.service.streams == 1)
        receiving.cancel()
        await wait_until(lambda: bench.service.streams == 0)
        bench.service.submit("a", BODY)
        assert (await handed(queue)).id == "a"
        assert bench.service.jobs["a"].attempts == 1


async def test_a_job_that_comes_between_two_receives_waits_for_the_next() -> None:
    """The service pushes it when the one before is over; it is the next receive's, on the same stream."""
    async with benched() as bench:
        queue = bench.driver()
        bench.service.submit("a", BODY)
        bench.service.submit("b", BODY)
        await queue.ack(await handed(queue), result_of("a"))
        await wait_until(lambda: bench.service.jobs["b"].status == "running")
        assert (await handed(queue)).id == "b"
        assert bench.service.named == [""]


async def test_a_job_that_nobody_comes_for_goes_back() -> None:
    """After the time that a next receive may take."""
    async with benched() as bench:
        queue = bench.driver(linger=timedelta(milliseconds=300))
        bench.service.submit("a", BODY)
        bench.service.submit("b", BODY)
        await queue.ack(await handed(queue), result_of("a"))
        await wait_until(lambda: bench.service.jobs["b"].events == ["created", "started", "failed"])
        await wait_until(lambda: bench.service.streams == 0)
        await queue.settled()
        assert bench.service.calls["RejectJob", "OK"] == 1


async def test_who_leaves_is_given_nothing_more() -> None:
    """The last job is answered after the stream was closed, so that no other comes with the answer."""
    async with benched() as bench:
        queue = bench.driver()
        assert isinstance(queue, Leaving)
        bench.service.submit("a", BODY)
        bench.service.submit("b", BODY)
        delivery = await handed(queue)
        queue.leave()
        await queue.extend(delivery)
        assert bench.service.streams == 1
        await queue.ack(delivery, result_of("a"))
        assert (bench.service.jobs["a"].status, bench.service.jobs["b"].events) == ("succeeded", ["created"])
        await wait_until(lambda: bench.service.streams == 0)


async def test_who_is_back_is_given_jobs_again() -> None:
    """Leaving is for a pause too: the next receive opens a stream."""
    async with benched() as bench:
        queue = bench.driver()
        bench.service.submit("a", BODY)
        bench.service.submit("b", BODY)
        delivery = await handed(queue)
        queue.leave()
        await queue.ack(delivery, result_of("a"))
        assert (bench.service.streams, bench.service.jobs["b"].events) == (0, ["created"])
        delivery = await handed(queue)
        bench.service.submit("c", BODY)
        await queue.ack(delivery, result_of("b"))
        await wait_until(lambda: bench.service.jobs["c"].status == "running")
        assert (await handed(queue)).id == "c"
        assert {job.attempts for job in bench.service.jobs.values()} == {1}


async def test_leaving_with_a_job_in_hand() -> None:
    """What was pushed meanwhile and nobody took goes back at once."""
    async with benched(grace_s=0.1) as bench:
        queue = bench.driver(linger=timedelta(minutes=5))
        bench.service.submit("a", BODY)
        bench.service.submit("b", BODY)
        await queue.ack(await handed(queue), result_of("a"))
        await wait_until(lambda: bench.service.jobs["b"].status == "running")
        assert await queue.check()
        queue.leave()
        await wait_until(lambda: bench.service.jobs["b"].status == "pending")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("end", ENDS)
async def test_what_is_over_is_over(verb: str, end: str) -> None:
    """Nothing more can be done with a delivery that was answered."""
    async with benched() as bench:
        queue = bench.driver()
        bench.service.submit("a", BODY)
        delivery = await handed(queue)
        await ENDS[end](queue, delivery)
        before = list(bench.service.jobs["a"].events)
        with pytest.raises(LeaseLost):
            await VERBS[verb](queue, delivery)
        assert bench.service.jobs["a"].events == before


async def test_outputs() -> None:
    """A success and a failure for good are outputs; what is given back is handed over again, four times in all."""
    async with benched() as bench:
        queue = bench.driver()
        for job_id in ("a", "b", "c"):
            bench.service.submit(job_id, BODY)
        await queue.ack(await handed(queue), result_of("a"))
        await queue.reject(await handed(queue), result_of("b", "failed", code="invalid_job"))
        for _ in range(4):
            await queue.nack(await handed(queue), NOW, "internal", charged=True)
        told = {one.id: (one.status, one.output and one.output["status"]) for one in bench.service.jobs.values()}
        assert told == {"a": ("succeeded", "succeeded"), "b": ("succeeded", "failed"), "c": ("failed", None)}
        assert bench.service.jobs["b"].output["error"]["code"] == "invalid_job"


async def test_a_job_given_back_is_for_others() -> None:
    """The stream is closed before, and for the delay: another worker gets it."""
    async with benched() as bench:
        queue, other = bench.driver(), bench.driver(Node("w2"))
        bench.service.submit("a", BODY)
        await queue.nack(await handed(queue), timedelta(minutes=1), "disk_full", charged=False)
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        assert (await handed(other)).id == "a"
        assert bench.service.named == ["", ""]
        receiving.cancel()


async def test_an_output_that_is_too_large() -> None:
    """The job ends with an error that says so, and without the images."""
    async with benched() as bench:
        queue = bench.driver()
        bench.service.submit("a", BODY)
        result = result_of("a").model_copy(update={"metadata": {"x": "y" * (10 * 2**20)}})
        await queue.complete(await handed(queue), result.to_json(), lambda error: json.dumps(error.code).encode())
        assert (bench.service.jobs["a"].status, bench.service.jobs["a"].output) == ("succeeded", "result_too_large")
        assert bench.service.calls == {("AcceptJobs", "OK"): 1, ("CompleteJob", "OK"): 1}


async def test_an_output_that_the_service_refuses() -> None:
    """The error takes its place; where that is refused too, the job is given back."""
    async with benched() as bench:
        queue = bench.driver()
        bench.service.submit("a", BODY)
        bench.service.submit("b", BODY)
        bench.service.failing["CompleteJob"].append(StatusCode.INVALID_ARGUMENT)
        await queue.ack(await handed(queue), result_of("a"))
        output = bench.service.jobs["a"].output
        assert (output["status"], output["error"]["code"]) == ("failed", "internal")
        bench.service.failing["CompleteJob"].extend([StatusCode.INVALID_ARGUMENT] * 2)
        await queue.ack(await handed(queue), result_of("b"))
        assert bench.service.jobs["b"].events == ["created", "started", "failed", "started"]


async def test_a_service_that_takes_less_than_it_says() -> None:
    """A large output is replaced by what says so."""
    async with benched() as bench:
        queue = bench.driver()
        bench.service.submit("a", BODY)
        bench.service.failing["CompleteJob"].append(StatusCode.RESOURCE_EXHAUSTED)
        result = result_of("a").model_copy(update={"metadata": {"x": "y" * 2**20}})
        await queue.complete(await handed(queue), result.to_json(), lambda error: json.dumps(error.code).encode())
        assert bench.service.jobs["a"].output == "result_too_large"


async def test_a_service_that_is_asked_too_much() -> None:
    """It refuses a small output with the same status, for now: what the job made is not given up."""
    async with benched() as bench:
        queue = bench.driver()
        bench.service.submit("a", BODY)
        delivery = await handed(queue)
        bench.service.failing["CompleteJob"].append(StatusCode.RESOURCE_EXHAUSTED)
        with pytest.raises(QueueUnavailable, match="RESOURCE_EXHAUSTED"):
            await queue.ack(delivery, result_of("a"))
        await queue.ack(delivery, result_of("a"))
        assert bench.service.jobs["a"].output["status"] == "succeeded"


async def test_no_json_is_refused() -> None:
    """As the service itself does it."""
    async with benched() as bench:
        queue = bench.driver()
        bench.service.submit("a", BODY)
        await queue.complete(await handed(queue), b"no json", lambda error: json.dumps(error.message).encode())
        assert "INVALID_ARGUMENT" in bench.service.jobs["a"].output


async def test_closing_gives_back_what_is_out() -> None:
    """Nobody will end it any more; afterwards there is no queue."""
    async with benched() as bench:
        queue = bench.driver()
        bench.service.submit("a", BODY)
        await handed(queue)
        await queue.aclose()
        assert bench.service.jobs["a"].events == ["created", "started", "failed"]
        with pytest.raises(QueueUnavailable, match="closed"):
            await queue.check()
        await queue.aclose()


async def test_a_job_pushed_again() -> None:
    """The service repeats itself: the job is out already."""
    async with benched() as bench:
        queue = bench.driver()
        bench.service.submit("a", BODY)
        delivery = await handed(queue)
        bench.service.repeat("a")
        await wait_until(lambda: not bench.service.repeating)
        await queue.extend(delivery)
        await queue.ack(delivery, result_of("a"))
        assert bench.service.jobs["a"].attempts == 1


async def test_a_lost_job_is_pushed_again() -> None:
    """While its holder does not know yet that it was lost: it is a new hand-over, which nobody overlooks."""
    async with benched() as bench:
        queue = bench.driver()
        bench.service.submit("a", BODY)
        stale = await handed(queue)
        receiving = asyncio.create_task(handed(queue), name="receiving")
        bench.service.cut_off()
        await wait_until(lambda: bench.service.jobs["a"].attempts == 2)
        with pytest.raises(LeaseLost):
            await queue.extend(stale)
        anew = await receiving
        await queue.ack(anew, result_of("a"))
        assert bench.service.jobs["a"].events == ["created", "started", "failed", "started", "succeeded"]


async def test_a_large_input_comes_whole() -> None:
    """Messages of ten megabytes are taken."""
    async with benched() as bench:
        whole = b'"' + b"x" * (10 * 2**20 - 100) + b'"'
        bench.service.submit("a", whole)
        assert (await handed(bench.driver())).body == whole


@pytest.mark.parametrize("seed", range(2))
async def test_cancelled_receives(seed: int) -> None:
    """Cancelled at any instant they leave nothing with us: what was pushed in that instant waits again."""
    async with benched(attempts=1000, grace_s=0.05) as bench:
        queue, rng, loop = bench.driver(), random.Random(seed), asyncio.get_running_loop()
        for job_id in ("a", "b", "c"):
            bench.service.submit(job_id, BODY)
        handed_over = 0
        for _ in range(100):
            receiving = asyncio.create_task(queue.receive(), name="receiving")
            loop.call_later(rng.uniform(0, 0.004), receiving.cancel)
            await asyncio.wait({receiving})
            if not receiving.cancelled() and (delivery := receiving.result().delivery) is not None:
                handed_over += 1
                await queue.nack(delivery, NOW, "draining", charged=False)
        await queue.settled()
        await wait_until(lambda: {one.status for one in bench.service.jobs.values()} == {"pending"})
        await wait_until(lambda: bench.service.streams == 0)
        assert 0 < handed_over <= sum(one.attempts for one in bench.service.jobs.values())


async def test_extend_while_the_end_is_told() -> None:
    """There is nothing to renew any more."""
    async with benched() as bench:
        queue = bench.driver()
        bench.service.submit("a", BODY)
        delivery = await handed(queue)
        bench.service.answers.clear()
        ending = asyncio.create_task(queue.ack(delivery, result_of("a")), name="ending")
        await wait_until(lambda: bench.service.asked_to_end == 1)
        await queue.extend(delivery)
        bench.service.answers.set()
        await ending
        assert bench.service.named == [""]


async def test_a_job_in_hand_that_is_gone() -> None:
    """Pushed before anybody asked, and given to another worker meanwhile: nobody here ever hears of it."""
    async with benched() as bench:
        queue = bench.driver(linger=timedelta(minutes=5))
        for job_id in ("a", "b"):
            bench.service.submit(job_id, BODY)
        await queue.ack(await handed(queue), result_of("a"))
        await wait_until(lambda: bench.service.jobs["b"].status == "running")
        bench.service.end_streams()
        await wait_until(lambda: bench.service.named == ["", "b"])
        bench.service.hand_to("b", "w2")
        bench.service.end_streams()
        await wait_until(lambda: bench.service.named == ["", "b", "b", ""])
        bench.service.submit("c", BODY)
        assert (await handed(queue)).id == "c"


async def test_a_job_that_was_lost_is_not_given_back() -> None:
    """Closing leaves alone what another worker has."""
    async with benched() as bench:
        queue = bench.driver()
        bench.service.submit("a", BODY)
        delivery = await handed(queue)
        bench.service.hand_to("a", "w2")
        with pytest.raises(LeaseLost):
            await queue.ack(delivery, result_of("a"))
        await queue.aclose()
        assert bench.service.calls["RejectJob", "NOT_FOUND"] == 0


async def test_two_receives_at_a_time() -> None:
    """One of them gets the job; the other one, which is cancelled, does not close the stream for it."""
    async with benched() as bench:
        queue = bench.driver()
        first, second = (asyncio.create_task(queue.receive(), name="receiving") for _ in range(2))
        await wait_until(lambda: bench.service.streams == 1)
        first.cancel()
        await asyncio.wait({first})
        bench.service.submit("a", BODY)
        assert (await second).delivery is not None
        assert bench.service.named == [""]
