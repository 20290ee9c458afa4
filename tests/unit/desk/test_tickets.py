"""What the desk remembers of jobs."""

from __future__ import annotations

from typing import cast

import pytest

from tests.support.queues import result_of
from worker.desk.stores import HandedStorage
from worker.desk.tickets import Ended, Ticket, Tickets
from worker.errors import Fault
from worker.result import ErrorResult, ImageResult, Result
from worker.webhooks import Notifier


def ended(job_id: str, size: int = 0) -> Ended:
    image = ImageResult(index=0, base64="x" * size, format="png", width=1, height=1, bytes=1, sha256="")
    return Ended(result_of(job_id).model_copy(update={"images": (image,)}))


def filled(tickets: Tickets, *job_ids: str, size: int = 0) -> None:
    for job_id in job_ids:
        tickets.add(Ticket(job_id, "", waits=True))
        tickets.end(job_id, ended(job_id, size))
        tickets.close(job_id)


def test_the_oldest_ends_are_forgotten_first() -> None:
    """So many, and so many bytes, but always the latest."""
    few = Tickets(most=2)
    filled(few, "a", "b", "c")
    assert [few.find(name) is None for name in "abc"] == [True, False, False]
    small = Tickets(most_bytes=10)
    filled(small, "a", "b", size=6)
    assert [small.find(name) is None for name in "ab"] == [True, False]
    filled(small, "c", size=100)
    assert small.find("c") is not None
    filled(small, "d", size=4)
    assert [small.find(name) is None for name in "bcd"] == [True, True, False]


def test_one_that_its_queue_is_not_done_with_is_never_forgotten() -> None:
    """Where its webhooks go must be known until the last is sent."""
    tickets = Tickets(most=1)
    tickets.add(Ticket("a", "", waits=True))
    tickets.end("a", ended("a"))
    filled(tickets, "b", "c")
    assert tickets.find("a") is not None
    assert tickets.is_closing("a")
    tickets.close("a")
    assert tickets.find("a") is None


def test_one_that_is_asked_for_again_takes_the_place_of_the_old() -> None:
    """Its bytes are counted once."""
    tickets = Tickets(most_bytes=10)
    for _ in range(3):
        filled(tickets, "a", size=8)
    filled(tickets, "b", size=2)
    assert tickets.find("a") is not None
    tickets.drop("a")
    filled(tickets, "c", size=8)
    assert tickets.find("b") is not None


def test_only_the_first_end_counts() -> None:
    """And an end of nobody changes nothing."""
    tickets = Tickets()
    ticket = Ticket("a", "", waits=True, client_id="mine")
    tickets.add(ticket)
    assert tickets.called("mine") == [ticket]
    tickets.end("a", ended("a"))
    tickets.end("a", Ended(result_of("a", "failed")))
    tickets.end("b", ended("b"))
    assert ticket.ended is not None
    assert ticket.ended.result.status == "succeeded"
    assert (tickets.called("mine"), tickets.find("b"), list(tickets)) == ([], None, [])


def failed(fault: Fault) -> Result:
    error = ErrorResult(code="x", message="y", retryable=False, fault=fault)
    return result_of("a", "failed").model_copy(update={"error": error})


CANCELLED = result_of("a", "cancelled")


@pytest.mark.parametrize(
    ("result", "waits", "whole", "answers"),
    [
        (None, True, b"1", True),
        (result_of("a"), True, b"2", True),
        (failed(Fault.JOB), True, b"1", True),
        (failed(Fault.JOB), True, b"2", False),
        *((failed(fault), False, b"1", False) for fault in Fault if fault is not Fault.JOB),
        (CANCELLED, True, b"1", False),
    ],
)
def test_an_end_answers_again_unless_it_may_pass(
    result: Result | None, waits: bool, whole: bytes, answers: bool
) -> None:
    """Successes, and the job's own faults of the very same document."""
    ticket = Ticket("a", "", waits, whole=b"1")
    if result is not None:
        ticket.end(Ended(result))
    assert ticket.answers(whole) is answers


def test_what_only_work_needs_is_let_go_of() -> None:
    """A caller's own store and notifier may hold his whole request; that there was a store is remembered."""
    tickets = Tickets()
    apart, other = (
        Ticket("a", "", waits=True, store=HandedStorage(), notifier=cast("Notifier", object())),
        Ticket("b", "", waits=True),
    )
    for ticket in (apart, other):
        tickets.add(ticket)
        tickets.end(ticket.id, ended(ticket.id))
    assert apart.notifier is not None
    for ticket in (apart, other):
        tickets.close(ticket.id)
    assert tickets.find("a") is apart
    assert [one for one in (apart.store, apart.notifier) if one is not None] == []
    assert (apart.is_stored_apart, other.is_stored_apart) == (True, False)
