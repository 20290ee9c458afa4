"""The rules that the queues of ours share."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from tests.support.clock import START
from tests.support.queues import result_of
from worker.errors import UNRECEIVED, Fault
from worker.queues.policy import (
    HandOver,
    Policy,
    attempts_of,
    deliveries_of,
    end_code,
    fingerprint,
    is_charged,
    job_code,
    open_status,
)
from worker.queues.sqlite.driver import QUICKEST_S, SLOWEST_S, Pace

LATER = START + timedelta(seconds=1)


def handed(*codes: str | None, run: int = 0, charged: bool = False) -> list[HandOver]:
    return [HandOver(token, run, "w1", START, code, charged) for token, code in enumerate(codes, 1)]


def test_delivery_of_a_later_run() -> None:
    """An earlier run makes a delivery a redelivery, and counts for nothing else."""
    earlier = handed("internal", "internal", charged=True)
    delivery = Policy(max_attempts=2, max_deliveries=2).delivery("a", b"", START, HandOver(3, 1, "w1"), earlier)
    assert (delivery.deliveries, delivery.attempts, delivery.redelivered) == (1, (), True)
    assert (delivery.last_attempt, delivery.last_delivery, delivery.over_limit) == (False, False, False)


def test_a_hand_over_that_nobody_received_was_none() -> None:
    """What came when nobody waited for it any more leaves no trace in a later delivery."""
    delivery = Policy(max_deliveries=2).delivery("a", b"", START, HandOver(3, 0, "w1"), handed(UNRECEIVED, UNRECEIVED))
    assert (delivery.deliveries, delivery.attempts, delivery.redelivered) == (1, (), False)
    assert delivery.last_delivery is False


def test_counting() -> None:
    """Vanished hand-overs count, released ones do not, and one that is still out is no attempt yet."""
    history = [*handed(None, "draining", "internal"), HandOver(9, 0, "w1")]
    assert deliveries_of(history) == 3
    assert [one.code for one in attempts_of(history)] == [None, "draining", "internal"]


@pytest.mark.parametrize(
    ("token", "visible_at", "status"),
    [(None, START, "waiting"), (7, START, "waiting"), (None, LATER, "delayed"), (7, LATER, "leased")],
)
def test_open_status(token: int | None, visible_at: object, status: str) -> None:
    """A job that is not over waits, is delayed or leased; a lease that ran out is none."""
    assert open_status(token, START if visible_at is START else LATER, START) == status


@pytest.mark.parametrize(
    ("status", "code", "end", "job"),
    [
        ("succeeded", None, "succeeded", None),
        ("cancelled", None, "cancelled", "cancelled"),
        ("failed", "invalid_job", "invalid_job", "invalid_job"),
        ("failed", None, "failed", "failed"),
    ],
)
def test_codes(status: str, code: str | None, end: str, job: str | None) -> None:
    """An end is named by the error's code, else by the result's status; a success leaves no code on the job."""
    result = result_of("a", status, code=code)  # type: ignore[arg-type]
    assert (end_code(result), job_code(result)) == (end, job)


@pytest.mark.parametrize("fault", Fault)
def test_charged(fault: Fault) -> None:
    """Only what the job or a bug of ours did is charged."""
    assert is_charged(result_of("a", "failed", code="x", fault=fault)) is (fault in (Fault.JOB, Fault.BUG))
    assert not is_charged(result_of("a"))


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\xfe", b"null", b'"text"', b"[" * 100_000, b'{"a": ' + b"9" * 10_000 + b"}", b'{"a": "\\ud800"}'],
)
def test_fingerprint_of_anything(body: bytes) -> None:
    """Whatever a body holds has a fingerprint, and another body another one."""
    assert fingerprint("a", body) == fingerprint("a", body)
    assert fingerprint("a", body) != fingerprint("a", body + b"x")


def test_fingerprint_of_a_document() -> None:
    """A document is what it asks for: its id may stand in it or beside it, its delivery does not matter."""
    one = fingerprint("a", b'{"params": {"prompt": "x"}}')
    assert one == fingerprint("a", b'{"priority": 3, "id":"a","params":{"prompt":"x"}}')
    assert one != fingerprint("a", b'{"id": "b", "params": {"prompt": "x"}}')
    assert one != fingerprint("a", b'{"params": {"prompt": "y"}}')


def test_pace() -> None:
    """Looks at the file come ever more rarely until something happens, and never quite in step."""
    pace = Pace(random.Random(1))
    pauses = [pace.next_s() for _ in range(20)]
    assert pauses[0] <= QUICKEST_S
    assert all(SLOWEST_S * 0.75 <= pause <= SLOWEST_S for pause in pauses[10:])
    assert len(set(pauses[10:])) > 1
    pace.quicken()
    assert pace.next_s() <= QUICKEST_S
