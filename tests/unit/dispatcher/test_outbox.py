"""Owed webhooks: tried again by and by, dropped when nobody will ever take them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

from dispatcher.metrics import WEBHOOKS, Metrics
from dispatcher.outbox import AGAIN, Outbox, job_of
from dispatcher.store.base import Letter, Store, StoreUnavailable
from tests.support.boards import AT
from tests.support.clock import FakeClock
from tests.support.receiver import Answer, Receiver
from tests.support.waiting import wait_until
from worker.clock import CorrectedClock
from worker.result import Result, WorkerResult
from worker.retry import Policy
from worker.tasks import cancel_all
from worker.urls import Guard
from worker.webhooks import Defaults, Sender


@dataclass
class Letters:
    """Letters that are due, and what became of them."""

    due: list[Letter] = field(default_factory=list)
    posted_: list[tuple[int, timedelta | None]] = field(default_factory=list)
    fails: set[str] = field(default_factory=set)
    asked: int = 0

    async def letters(self, limit: int, lease: timedelta) -> list[Letter]:
        self.asked += 1
        if "letters" in self.fails:
            raise StoreUnavailable("letters")
        taken, self.due = self.due[:limit], self.due[limit:]
        return taken

    async def posted(self, letter_id: int, *, again: timedelta | None) -> None:
        self.posted_.append((letter_id, again))
        if "posted" in self.fails:
            raise StoreUnavailable("posted")


def a_letter(number: int, webhook: Any, *, tries: int = 0, event: str = "failed", **fields: Any) -> Letter:
    document = {"id": f"j{number}", "params": {"prompt": ""}, "webhook": webhook, **fields}
    worker = WorkerResult(id="dispatcher", version="0")
    result = Result(id=f"j{number}", status="failed", worker=worker, created_at=AT, finished_at=AT)
    return Letter(number, f"j{number}", event, document, result, tries)


@asynccontextmanager
async def an_outbox(letters: Letters, defaults: Defaults | None = None) -> AsyncIterator[Outbox]:
    sender = Sender(
        defaults or Defaults(),
        guard=Guard(private=True),
        clock=CorrectedClock(FakeClock(AT)),
        rng=random.Random(1),
        policy=Policy(attempts=1),
        budget=timedelta(seconds=10),
    )
    try:
        yield Outbox(cast("Store", letters), sender, Metrics(), timedelta(minutes=1), timedelta(seconds=0.01))
    finally:
        await sender.aclose()


async def test_what_is_due_is_sent_and_done_with() -> None:
    """To where the job, or else the operator, wants it; what nobody wants is dropped in silence."""
    async with Receiver() as receiver:
        hook = receiver.url("/hook")
        letters = Letters([a_letter(1, hook), a_letter(2, hook, event="cancelled"), a_letter(3, None)])
        async with an_outbox(letters, Defaults(url=receiver.url("/ours"))) as outbox:
            task = asyncio.create_task(outbox.run(), name="outbox")
            await wait_until(lambda: len(letters.posted_) == 3)
            await cancel_all({task})
        assert sorted(letters.posted_) == [(1, None), (2, None), (3, None)]
        assert sorted(request.path for request in receiver.taken) == ["/hook", "/ours"]
        assert outbox.metrics.value(WEBHOOKS, outcome="delivered") == 2


async def test_a_receiver_that_is_away_is_tried_again_later_and_later() -> None:
    """And after an hour no more."""
    async with Receiver() as receiver:
        receiver.otherwise = Answer(500)
        letters = Letters()
        async with an_outbox(letters) as outbox:
            for tries in range(len(AGAIN) + 1):
                await outbox.deliver(a_letter(tries, receiver.url("/hook"), tries=tries))
        assert [again for _, again in letters.posted_] == [*AGAIN, None]
        assert outbox.metrics.value(WEBHOOKS, outcome="postponed") == len(AGAIN)
        assert outbox.metrics.value(WEBHOOKS, outcome="undelivered") == 1


async def test_what_can_never_be_sent_is_dropped() -> None:
    """A secret that nobody knows, a URL that must not be visited."""
    letters = Letters()
    async with an_outbox(letters) as outbox:
        await outbox.deliver(a_letter(1, {"url": "https://example.com/", "secret": "unknown"}))
        await outbox.deliver(a_letter(2, "ftp://example.com/"))
    assert letters.posted_ == [(1, None), (2, None)]
    assert outbox.metrics.value(WEBHOOKS, outcome="impossible") == 2


async def test_an_outage_of_the_database_ends_nothing() -> None:
    """Letters are asked for again, and one that could not be noted is due again when its lease ends."""
    letters = Letters(fails={"letters", "posted"})
    async with Receiver() as receiver, an_outbox(letters) as outbox:
        task = asyncio.create_task(outbox.run(), name="outbox")
        await wait_until(lambda: letters.asked > 1)
        letters.due.append(a_letter(1, receiver.url("/hook")))
        letters.fails.discard("letters")
        await wait_until(lambda: letters.posted_)
        assert not task.done()
        await cancel_all({task})
        assert len(receiver.taken) == 1


def test_a_document_that_is_no_job_still_says_where_to_tell() -> None:
    """What can be saved of it: its id and its webhook."""
    job = job_of(a_letter(1, "https://example.com/hook", nonsense=1))
    assert job.id == "j1"
    assert job.webhook is not None
    assert job.webhook.url == "https://example.com/hook"
