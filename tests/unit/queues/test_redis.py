"""The redis driver and what other programs see of it: the stream, its group, the dead letters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest

from tests.support.clock import FakeClock
from tests.support.queues import result_of, taken
from tests.support.redis import RedisServer
from tests.support.waiting import wait_until
from worker.errors import LeaseLost
from worker.queues.base import Delivery, JobState
from worker.queues.policy import Policy
from worker.queues.redis import RedisPlace, RedisQueue

pytest_plugins = ("tests.support.redis_fixtures",)

BRIEF = timedelta(milliseconds=20)
LONG = timedelta(seconds=60)
NOW = timedelta(0)
LATER = Policy().visibility
SHORT_LEASE = Policy(visibility=timedelta(milliseconds=60))
Make = Callable[..., RedisQueue]


class Desk:
    """A stream, drivers on it, and the commands of other programs."""

    def __init__(self, server: RedisServer) -> None:
        self.server, self.place = server, server.place()
        self.opened: list[RedisQueue] = []

    def driver(
        self,
        worker: str = "w1",
        *,
        wait: timedelta = BRIEF,
        policy: Policy | None = None,
        clock: FakeClock | None = None,
    ) -> RedisQueue:
        self.opened.append(RedisQueue(self.place, worker=worker, wait=wait, policy=policy, clock=clock))
        return self.opened[-1]

    def key(self, name: str) -> str:
        return f"{{{self.place.stream}}}:{name}"

    def ask(self, *command: str | bytes | int) -> Any:
        return self.server.ask(*command)

    def add(self, *fields: str | bytes, entry: str = "*") -> str:
        """What another program puts into the stream; the entry's id."""
        added: bytes = self.ask("XADD", self.place.stream, entry, *fields)
        return added.decode()

    def pending(self) -> list[tuple[str, int]]:
        """Who holds an entry of the group, and how often it was handed over."""
        told = self.ask("XPENDING", self.place.stream, self.place.group, "-", "+", 100)
        return [(consumer.decode(), count) for _, consumer, _, count in told]

    def length(self) -> int:
        return int(self.ask("XLEN", self.place.stream))


@pytest.fixture(name="desk")
async def open_desk(redis_server: RedisServer) -> AsyncIterator[Desk]:
    desk = Desk(redis_server)
    yield desk
    for queue in desk.opened:
        await queue.aclose()


async def state_of(queue: RedisQueue, job_id: str) -> JobState:
    state = await queue.state(job_id)
    assert state is not None
    return state


def document(**more: object) -> bytes:
    return json.dumps({"params": {"prompt": "a cat"}, **more}).encode()


@pytest.mark.parametrize("field", ["job", "document", "payload"])
async def test_entry_of_another_program(desk: Desk, field: str) -> None:
    """A document in any one field is a job under the entry's id, and gone from the stream when it is over."""
    queue, body = desk.driver(), document()
    entry = desk.add(field, body)
    delivery = await taken(queue)
    assert (delivery.id, delivery.body, delivery.deliveries, delivery.redelivered) == (entry, body, 1, False)
    assert delivery.queued_at is not None
    assert int(delivery.queued_at.timestamp() * 1000) == int(entry.partition("-")[0])
    await queue.ack(delivery, result_of(entry))
    assert (await state_of(queue, entry)).status == "done"
    assert (desk.length(), desk.pending()) == (0, [])


async def test_named_field_goes_first(desk: Desk) -> None:
    """What stands beside the document is not taken for it."""
    queue = desk.driver()
    desk.add("sent_by", "a program", "document", b"{}")
    assert (await taken(queue)).body == b"{}"


async def test_id_within_the_document(desk: Desk) -> None:
    """The document's own id is the job's, so that its owner can ask for it and cancel it by that name."""
    queue = desk.driver()
    desk.add("job", document(id="mine"))
    desk.add("job", document(id="../mine"))
    first, second = await taken(queue), await taken(queue)
    assert first.id == "mine"
    assert second.id.partition("-")[0].isdigit()
    assert await queue.cancel("mine")


async def test_id_in_a_field(desk: Desk) -> None:
    """A program may say the id and the priority beside a document that it does not read."""
    queue = desk.driver()
    desk.add("job", b"\xff", "id", "first", "priority", "1")
    desk.add("job", b"{}", "id", "second", "priority", "high")
    desk.add("job", document(id="third", priority=7))
    assert await queue.state("first") is None
    assert [(await taken(queue)).id for _ in range(3)] == ["third", "first", "second"]


async def test_same_document_twice(desk: Desk) -> None:
    """A document that was put there twice under one id is one job, whoever put it there."""
    queue = desk.driver()
    desk.add("job", document(id="a"))
    desk.add("job", document(id="a", webhook="https://elsewhere.example"))
    await queue.submit("b", document(id="b"))
    desk.add("job", document(id="b"))
    assert [(await taken(queue)).id for _ in range(2)] == ["a", "b"]
    assert (await queue.receive()).delivery is None
    assert not await queue.submit("a", document())
    assert desk.length() == 2


async def test_another_document_under_a_known_id(desk: Desk) -> None:
    """It is a dead letter under its entry's id; the job that was there first is not touched."""
    queue = desk.driver()
    await queue.submit("a", document())
    entry = desk.add("job", document(id="a", x="other"))
    assert (await taken(queue)).id == "a"
    [dead] = await queue.jobs("dead")
    assert (dead.id, dead.code, dead.deliveries) == (entry, "id_conflict", 0)
    assert (await state_of(queue, "a")).status == "leased"


@pytest.mark.parametrize("fields", [("job", ""), ("job", "[1]"), ("job", "nonsense")])
async def test_entry_that_is_no_document(desk: Desk, fields: tuple[str, str]) -> None:
    """It is handed over like any other, so that somebody is told that it is none."""
    queue = desk.driver()
    entry = desk.add(*fields)
    delivery = await taken(queue)
    assert (delivery.id, delivery.body) == (entry, fields[1].encode())


async def test_odd_entry_ids(desk: Desk) -> None:
    """Ids that are no times keep their order; such a job counts as queued when it was found."""
    queue = desk.driver()
    for entry in ("1-1", "1-2", "2-10", "18446744073709551614-5"):
        desk.add("job", document(), entry=entry)
    deliveries = [await taken(queue) for _ in range(4)]
    assert [one.id for one in deliveries] == ["1-1", "1-2", "2-10", "18446744073709551614-5"]
    assert all(one.queued_at is not None and one.queued_at.year > 2020 for one in deliveries)


async def test_many_entries_at_once(desk: Desk) -> None:
    """However many others put there, each is handed over once, in order."""
    queue, others = desk.driver(), desk.driver("w2")
    entries = [desk.add("job", document()) for _ in range(30)]
    found = [(await taken(driver)).id for _ in range(15) for driver in (queue, others)]
    assert sorted(found) == entries
    assert (await queue.receive()).delivery is None


@pytest.mark.parametrize("by", ["another program", "another process"])
async def test_wakes_a_waiting_receive(desk: Desk, by: str) -> None:
    """A receive that waits gets a job at once, whoever puts it there."""
    queue, producer = desk.driver(wait=LONG), desk.driver("w2")
    receiving = asyncio.create_task(queue.receive(), name="receiving")
    await wait_until(lambda: desk.ask("INFO", "clients").partition(b"blocked_clients:")[2][:1] != b"0")
    if by == "another program":
        desk.add("job", document())
    else:
        await producer.submit("a", document())
    async with asyncio.timeout(4):
        assert (await receiving).delivery is not None


async def test_job_given_back_wakes_another_worker(desk: Desk) -> None:
    """A worker that waits gets what another gave back, a delayed job as soon as it is due."""
    waiting, holder = desk.driver(wait=LONG), desk.driver("w2")
    await holder.submit("a", document())
    for delay in (NOW, timedelta(milliseconds=30)):
        held = await taken(holder)
        receiving = asyncio.create_task(waiting.receive(), name="receiving")
        await wait_until(lambda: desk.ask("INFO", "clients").partition(b"blocked_clients:")[2][:1] != b"0")
        await holder.nack(held, delay, "disk_full", charged=False)
        async with asyncio.timeout(4):
            delivery = (await receiving).delivery
        assert delivery is not None
        await waiting.nack(delivery, NOW, "draining", charged=False)


async def test_pending_entries_mirror_the_leases(desk: Desk) -> None:
    """The group's pending entries are what is held, by whom, handed over how often; idle since the last extend."""
    clock = FakeClock()
    queue, other = desk.driver(clock=clock), desk.driver("w2", clock=clock)
    await queue.submit("a", document())
    desk.add("job", document(id="b"))
    assert desk.length() == 2
    held = {one.id: one for one in [await taken(queue), await taken(queue)]}
    assert desk.pending() == [("w1", 1), ("w1", 1)]
    await queue.nack(held["b"], LATER * 2, "disk_full", charged=False)
    assert desk.pending() == [("w1", 1)]
    clock.advance(LATER)
    again = await taken(other)
    assert (again.id, again.deliveries, desk.pending()) == ("a", 2, [("w2", 2)])
    await other.extend(again)
    assert desk.pending() == [("w2", 2)]
    await other.reject(again, result_of("a", "failed", code="invalid_job"))
    assert (desk.length(), desk.pending()) == (1, [])


async def test_dead_letters_are_a_stream(desk: Desk) -> None:
    """Another program reads there what died of what, and finds it gone once it was requeued."""
    queue = desk.driver()
    await queue.submit("a", document(), priority=3)
    await queue.reject(await taken(queue), result_of("a", "failed", code="invalid_job"))
    [[_, told]] = desk.ask("XRANGE", desk.key("dead"), "-", "+")
    fields = dict(zip(told[::2], told[1::2], strict=True))
    assert {name: fields[name] for name in (b"id", b"code", b"priority", b"job")} == {
        b"id": b"a",
        b"code": b"invalid_job",
        b"priority": b"3",
        b"job": document(),
    }
    assert json.loads(fields[b"result"])["error"]["code"] == "invalid_job"
    assert await queue.requeue("a")
    assert (desk.ask("XLEN", desk.key("dead")), desk.length()) == (0, 1)
    assert (await taken(queue)).body == document()


async def test_deleted_dead_letter(desk: Desk) -> None:
    """A dead letter whose document somebody deleted can be listed and not requeued."""
    queue = desk.driver()
    await queue.submit("a", document())
    await queue.reject(await taken(queue), result_of("a", "failed", code="invalid_job"))
    desk.ask("DEL", desk.key("dead"))
    assert not await queue.requeue("a")
    assert [one.id for one in await queue.jobs("dead")] == ["a"]


async def test_document_that_was_trimmed_away(desk: Desk) -> None:
    """A job whose entry somebody deleted is a dead letter that says so, and the next one is handed over."""
    queue = desk.driver()
    await queue.submit("a", document())
    await queue.submit("b", document())
    desk.ask("XTRIM", desk.place.stream, "MAXLEN", 1)
    assert (await taken(queue)).id == "b"
    assert [(one.id, one.code) for one in await queue.jobs("dead")] == [("a", "document_lost")]


async def test_record_that_was_deleted(desk: Desk) -> None:
    """Where the ledger's records are gone, what pointed to them goes too."""
    queue, late = desk.driver(), desk.driver(policy=SHORT_LEASE)
    await queue.submit("a", document())
    await queue.submit("b", document())
    lost = await taken(late)
    desk.ask("DEL", desk.key("jobs"))
    await queue.submit("c", document())
    assert (await taken(queue)).id == "c"

    async def only_one_is_left() -> bool:
        return (await queue.receive()).delivery is None and desk.ask("ZCARD", desk.key("open")) == 1

    await wait_until(only_one_is_left)
    with pytest.raises(LeaseLost):
        await late.extend(lost)


async def test_reader_that_died_before_it_told(desk: Desk) -> None:
    """Entries that somebody read and never did anything about are jobs after the time of a lease."""
    queue = desk.driver(policy=SHORT_LEASE)
    await queue.check()
    entry = desk.add("job", document())
    desk.add("job", document(id="deleted"))
    desk.ask("XREADGROUP", "GROUP", desk.place.group, "gone", "STREAMS", desk.place.stream, ">")
    [[deleted, _]] = desk.ask("XREVRANGE", desk.place.stream, "+", "-", "COUNT", 1)
    desk.ask("XDEL", desk.place.stream, deleted)
    delivery = await taken(queue, tries=100)
    assert (delivery.id, delivery.deliveries) == (entry, 1)
    assert desk.pending() == [("w1", 1)]


async def test_priorities_out_of_bounds(desk: Desk) -> None:
    """Priorities beyond the bounds of a document's are the highest and the lowest."""
    queue = desk.driver()
    for job_id, priority in (("low", -(10**30)), ("middle", 0), ("high", 10**30)):
        await queue.submit(job_id, document(), priority=priority)
    assert [(await taken(queue)).id for _ in range(3)] == ["high", "middle", "low"]


async def test_several_pages_of_jobs(desk: Desk) -> None:
    """Listing reads as many as it was asked for, however many there are."""
    queue = desk.driver()
    await asyncio.gather(*(queue.submit(f"j{number:03}", document()) for number in range(210)))
    assert len(await queue.jobs(limit=1000)) == 210
    assert len(await queue.jobs("waiting", limit=205)) == 205
    assert await queue.jobs("leased") == []


async def test_two_groups_see_the_same_jobs(desk: Desk) -> None:
    """A stream is one queue, under whatever group: a job is handed over once."""
    queue = desk.driver()
    other = RedisQueue(RedisPlace(desk.place.url, desk.place.stream, "others"), worker="w2", wait=BRIEF)
    desk.opened.append(other)
    desk.add("job", document(id="a"))
    assert (await taken(queue)).id == "a"
    assert (await other.receive()).delivery is None


async def test_submitted_jobs_are_no_news(desk: Desk) -> None:
    """What was submitted here is not read from the stream as well, be it before or after what others put there."""
    queue = desk.driver()
    await queue.submit("a", document())
    desk.add("job", document(id="b"))
    await queue.submit("c", document())
    assert [(await taken(queue)).id for _ in range(3)] == ["a", "b", "c"]
    assert desk.length() == 3
    assert (await queue.receive()).delivery is None
    [[last, _]] = desk.ask("XREVRANGE", desk.place.stream, "+", "-", "COUNT", 1)
    groups = desk.ask("XINFO", "GROUPS", desk.place.stream)
    assert [info[info.index(b"last-delivered-id") + 1] for info in groups] == [last, last]


def token_of(delivery: Delivery) -> int:
    token: int = delivery.receipt
    return token


async def test_tokens_grow_over_a_loss_of_the_ledger(desk: Desk) -> None:
    """A holder from before the server lost everything has no say over the same job after it."""
    queue = desk.driver()
    await queue.submit("a", document())
    before = await taken(queue)
    for key in desk.ask("KEYS", f"*{desk.place.stream}*"):
        desk.ask("DEL", key)
    await queue.submit("a", document())
    after = await taken(queue)
    assert token_of(after) > token_of(before)
    with pytest.raises(LeaseLost):
        await queue.ack(before, result_of("a"))
