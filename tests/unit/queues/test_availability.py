"""The worker's side of a scheduling server: leases kept and answered, orders, tokens. In virtual time."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from tests.support.queues import result_of, taken
from tests.support.receiver import Answer
from tests.support.scheduled import POLICY, VISIBILITY, a_server, cancelled, events, facing, holding, status_of
from tests.support.scheduling import EXAMPLE_ANSWER, FullServer, MinimalServer, a_node
from tests.support.virtual import VirtualClock, elapse, virtual
from worker.errors import AuthFailed, JobCancelled, LeaseLost, QueueUnavailable
from worker.node import Orders, Report
from worker.wire import Download, Evict

NOW = timedelta(0)


@virtual
async def test_a_minimal_server_is_worked_for() -> None:
    """The published answer becomes a job and an order; nothing but requests for work and one heartbeat is sent."""
    server = MinimalServer(EXAMPLE_ANSWER, EXAMPLE_ANSWER)
    with capture_logs() as logs:
        async with facing(server) as (queue, _):
            received = await queue.receive()
            assert received.delivery is not None
            assert json.loads(received.delivery.body) == json.loads(EXAMPLE_ANSWER)["generation"]
            assert received.orders is not None
            assert [one.kind for one in received.orders.download] == ["checkpoint"]
            for _ in range(3):
                assert await queue.extend(received.delivery) is None
            await queue.ack(received.delivery, result_of("a"))
            second = await taken(queue)
            assert second.id != received.delivery.id
            await queue.nack(second, NOW, "draining", charged=False)
            assert "nothing redelivered" in await queue.check()
            assert "nothing redelivered" in await queue.check()
    assert [request.path for request in server.requests] == ["/availability"] * 2 + ["/heartbeat"] * 2
    assert events(logs) == ["queue_without_leases"]


@virtual
async def test_leases_without_heartbeats_are_kept_silently() -> None:
    """A server that leases and knows no heartbeats is asked for one once; results and releases may be unknown too."""
    server = MinimalServer('{"generation": {"id": "a", "token": 1}}', '{"generation": {"id": "b", "token": 2}}')
    with capture_logs() as logs:
        async with facing(server) as (queue, way):
            first, second = await taken(queue), await taken(queue)
            for _ in range(2):
                assert await queue.extend(first) is None
            await queue.ack(first, result_of("a"))
            await queue.nack(second, NOW, "draining", charged=False)
            for delivery in (first, second):
                with pytest.raises(LeaseLost):
                    await queue.extend(delivery)
            assert [path for _, path in way.at][2:] == ["/heartbeat", "/jobs/a/result", "/jobs/b/release"]
    assert events(logs) == ["queue_without_leases"]


@virtual
async def test_a_404_after_heartbeats_is_an_outage() -> None:
    """A proxy without its server must not make us believe that leases need no renewal, or that a result arrived."""
    server = a_server()
    async with facing(server) as (queue, _):
        [delivery] = await holding(server, queue, "a")
        await queue.extend(delivery)
        server.faults["heartbeat"].append(Answer(404))
        with pytest.raises(QueueUnavailable, match="answered 404"):
            await queue.extend(delivery)
        await queue.extend(delivery)
        server.faults["result"].append(Answer(404))
        with capture_logs() as logs, pytest.raises(LeaseLost):
            await queue.ack(delivery, result_of("a"))
    assert events(logs) == ["answer_refused"]


@virtual
async def test_concurrent_extends_are_one_heartbeat() -> None:
    """For everything held, in one request; the next one goes out when this one was answered."""
    server = a_server()
    async with facing(server) as (queue, way):
        held = await holding(server, queue, "a", "b", "c")
        await asyncio.gather(*(queue.extend(delivery) for delivery in held))
        [beat] = server.beats
        assert {(running.id, running.token) for running in beat.running} == {(d.id, d.receipt) for d in held}
        first = asyncio.create_task(queue.extend(held[0]), name="first")
        await elapse(way.latency_s / 2)
        await asyncio.gather(first, *(queue.extend(delivery) for delivery in held[1:]))
        assert len(server.beats) == 3


@virtual
async def test_whoever_joins_was_there_before_the_heartbeat_left() -> None:
    """A lease counts from the call of extend, so a heartbeat that is under way already is not good for it."""
    server = a_server()
    async with facing(server) as (queue, way):
        [delivery] = await holding(server, queue, "a")
        early = asyncio.create_task(queue.extend(delivery), name="early")
        await elapse(way.latency_s * 1.5)
        called = asyncio.get_running_loop().time()
        await queue.extend(delivery)
        await early
        assert way.times("/heartbeat")[-1] >= called


@virtual
async def test_each_hears_of_its_own() -> None:
    """Lost, cancelled and kept jobs of one heartbeat; orders go to exactly one."""
    server = a_server()
    async with facing(server) as (queue, way):
        lost, gone, *kept = await holding(server, queue, "lost", "gone", "a", "b")
        await server.queue.ack(lost, result_of("lost"))
        await server.queue.cancel("gone")
        server.orders.append({"evict": [{"kind": "vae", "name": "v"}]})
        found = await asyncio.gather(*(queue.extend(d) for d in (lost, gone, *kept)), return_exceptions=True)
        assert [type(one) for one in found[:2]] == [LeaseLost, JobCancelled]
        told = [one for one in found[2:] if one is not None]
        assert told == [Orders(evict=(Evict(kind="vae", name="v"),), cancel=("gone",))]
        with pytest.raises(JobCancelled):
            await queue.extend(gone)
        sent = len(way.at)
        with pytest.raises(LeaseLost):
            await queue.extend(lost)
        assert len(way.at) == sent
        assert {running.id for running in server.beats[-1].running} == {"gone", "a", "b"}


@virtual
async def test_a_heartbeat_that_fails_fails_for_all_and_is_done_again() -> None:
    """An outage is told to each; the next extend finds the lease as it was."""
    server = a_server()
    async with facing(server) as (queue, _):
        held = await holding(server, queue, "a", "b")
        server.faults["heartbeat"].append(Answer(503))
        found = await asyncio.gather(*(queue.extend(delivery) for delivery in held), return_exceptions=True)
        assert [type(one) for one in found] == [QueueUnavailable] * 2
        server.lost["heartbeat"].append(Answer(502))
        with pytest.raises(QueueUnavailable):
            await queue.extend(held[0])
        assert await queue.extend(held[0]) is None


@virtual
async def test_a_heartbeat_nobody_waits_for_ends_by_itself() -> None:
    """Also when it fails: its holder has gone, and its orders go to the next who asks."""
    server = a_server()
    async with facing(server) as (queue, _):
        [delivery] = await holding(server, queue, "a")
        for fault in (Answer(503), None):
            if fault is not None:
                server.faults["heartbeat"].append(fault)
            else:
                server.orders.append({"download": {"loras": ["http://host/x"]}})
            extending = asyncio.create_task(queue.extend(delivery), name="extending")
            await elapse(0.001)
            await cancelled(extending)
            await queue.settled()
        received = await queue.receive()
        assert received.delivery is None
        assert received.orders == Orders(download=(Download(url="http://host/x", kind="lora"),))


@virtual
async def test_a_cancelled_job_is_told_by_a_request_for_work_too() -> None:
    """Its holder hears of it by the orders and by its next extend, which renews the lease all the same."""
    server = a_server()
    async with facing(server, wait=timedelta(seconds=1)) as (queue, _):
        [delivery] = await holding(server, queue, "a")
        server.orders.append({"cancel": ["a", "unknown"]})
        received = await queue.receive()
        assert received.orders == Orders(cancel=("a", "unknown"))
        with pytest.raises(JobCancelled):
            await queue.extend(delivery)
        assert [running.id for running in server.beats[-1].running] == ["a"]
        await queue.ack(delivery, result_of("a", "cancelled"))
        assert await status_of(server, "a") == "done"


@pytest.mark.parametrize("verb", ["ack", "reject", "nack"])
@virtual
async def test_a_refused_answer_is_never_repeated(verb: str) -> None:
    """What the server will not take it will not take later either: its own limits end the job."""
    server = a_server()
    async with facing(server) as (queue, _):
        [delivery] = await holding(server, queue, "a")
        server.faults["release" if verb == "nack" else "result"].append(Answer(422))
        ends = {
            "ack": lambda: queue.ack(delivery, result_of("a")),
            "reject": lambda: queue.reject(delivery, result_of("a", "failed", code="invalid_job")),
            "nack": lambda: queue.nack(delivery, NOW, "internal", charged=True),
        }
        with capture_logs() as logs, pytest.raises(LeaseLost):
            await ends[verb]()
        assert [(line["event"], line["status"]) for line in logs] == [("answer_refused", 422)]
        with pytest.raises(LeaseLost):
            await queue.extend(delivery)


@virtual
async def test_an_answer_that_may_have_been_lost_can_be_repeated() -> None:
    """After an outage the delivery is still ours to settle; a second end is a stale one."""
    server = a_server()
    async with facing(server) as (queue, _):
        first, second = await holding(server, queue, "a", "b")
        server.faults["result"].append(Answer(503))
        with pytest.raises(QueueUnavailable):
            await queue.ack(first, result_of("a"))
        await queue.ack(first, result_of("a"))
        assert await status_of(server, "a") == "done"
        server.lost["result"].append(Answer(502))
        with pytest.raises(QueueUnavailable):
            await queue.ack(second, result_of("b"))
        with pytest.raises(LeaseLost):
            await queue.ack(second, result_of("b"))
        assert await status_of(server, "b") == "done"


@virtual
async def test_a_heartbeat_beside_the_end_does_not_call_it_lost() -> None:
    """While a delivery is settled the server no longer knows its lease: that is no reason to abandon it."""
    server = a_server()
    async with facing(server) as (queue, way):
        [delivery] = await holding(server, queue, "a")
        acking = asyncio.create_task(queue.ack(delivery, result_of("a")), name="acking")
        await elapse(way.latency_s / 2)
        assert await queue.extend(delivery) is None
        await acking
        assert [running.id for running in server.beats[-1].running] == ["a"]


@virtual
async def test_a_refused_token_pauses_and_is_told_by_the_check() -> None:
    """Verbs wait for the operator as for an outage; the check ends a command, or the start."""
    server = FullServer(VirtualClock(), POLICY, node_token="right")
    async with facing(server, token="wrong") as (queue, _):
        with pytest.raises(AuthFailed) as refused:
            await queue.receive()
        assert isinstance(refused.value, QueueUnavailable)
        with pytest.raises(AuthFailed) as told:
            await queue.check()
        assert not isinstance(told.value, QueueUnavailable)
    async with facing(server, a_node(tokens=["stale", "right"])) as (queue, _):
        assert await queue.check()


@virtual
async def test_what_is_held_is_told_with_each_request_for_work() -> None:
    """With its token, and how far it is; what ended, or is nobody's, is not."""
    server = a_server()
    node = a_node(report=Report(jobs={"b": (0.5, "generate")}))
    async with facing(server, node, wait=timedelta(seconds=1)) as (queue, _):
        ended, held, abandoned = await holding(server, queue, "a", "b", "c")
        await queue.ack(ended, result_of("a"))
        await elapse(VISIBILITY.total_seconds() / 2)
        await queue.extend(held)
        assert {running.id for running in server.beats[-1].running} == {"b", "c"}
        await elapse(VISIBILITY.total_seconds() / 2 + 1)
        await queue.extend(held)
        await queue.receive()
        for running in (server.beats[-1].running, server.asked[-1].running):
            assert [(r.id, r.token, r.progress, r.hop) for r in running] == [("b", held.receipt, 0.5, "generate")]
        await elapse(VISIBILITY.total_seconds() / 2)
        assert (await status_of(server, "b"), await status_of(server, "c")) == ("leased", "waiting")
        assert await queue.extend(abandoned) is None


@virtual
async def test_a_worker_that_begins_anew_holds_nothing() -> None:
    """The same id under another instance: what the earlier process held is not among what it tells."""
    server = a_server()
    async with facing(server) as (queue, _):
        await holding(server, queue, "a")
    node = a_node()
    reborn = type(node)(type(node.identity)("w1", "machine", "test", instance="w1-2"))
    async with facing(server, reborn, wait=timedelta(seconds=1)) as (queue, _):
        assert (await queue.receive()).delivery is None
        assert (server.asked[-1].node.id, server.asked[-1].node.instance) == ("w1", "w1-2")
        assert server.asked[-1].running == ()


@virtual
async def test_a_later_lease_ends_an_earlier_one() -> None:
    """A job that comes back while its lost delivery is still held: the old one is over, the new one is not."""
    server = a_server()
    async with facing(server) as (queue, way):
        [old] = await holding(server, queue, "a")
        await elapse(VISIBILITY.total_seconds() + 1)
        receiving = asyncio.create_task(taken(queue), name="receiving")
        await elapse(way.latency_s / 2)
        late = asyncio.create_task(queue.extend(old), name="late")
        new = await receiving
        assert new.receipt > old.receipt
        with pytest.raises(LeaseLost):
            await late
        with pytest.raises(LeaseLost):
            await queue.nack(old, NOW, "internal", charged=False)
        assert await queue.extend(new) is None
