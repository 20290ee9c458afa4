"""What is remembered of the first waiting jobs."""

from __future__ import annotations

from dispatcher.batch import Line
from dispatcher.heads import FRESH_S, Heads
from tests.support.boards import waiting

A, B = "checkpoint/a", "checkpoint/b"


def test_what_was_read_is_remembered_for_a_moment() -> None:
    """Also that there is nothing; after that it must be read again."""
    heads = Heads()
    assert heads.missing([A, B], 0) == [A, B]
    heads.put({A: [waiting("j1")]}, {A: 2, B: 2}, 0)
    assert heads.missing([A, B], FRESH_S / 2) == []
    assert [job.id for job in heads.of(A)] == ["j1"]
    assert heads.of(B) == heads.of("checkpoint/unread") == []
    assert heads.missing([A, B], FRESH_S) == [A, B]
    heads.prune(FRESH_S)
    assert heads.of(A) == []


def test_a_taken_job_is_not_seen_again() -> None:
    """Once all that were read are taken it is short where more may wait."""
    heads = Heads()
    first, second = waiting("j1"), waiting("j2")
    heads.put({A: [first, second]}, {A: 2}, 0)
    heads.take(first)
    assert heads.of(A) == [second]
    assert not heads.is_short(A)
    heads.take(second)
    heads.take(waiting("j3", "b"))
    assert heads.is_short(A)
    assert heads.missing([A], 0) == [A]
    heads.put({A: [first]}, {A: 2}, 0)
    heads.take(first)
    assert not heads.is_short(A)


def test_others_may_come_before_what_is_known() -> None:
    """What is forgotten is read again; what was never known is no mistake."""
    heads = Heads()
    heads.put({A: [waiting("j1")]}, {A: 2}, 0)
    heads.forget([A, B])
    assert heads.missing([A], 0) == [A]


def test_the_line_moves_with_each_decision() -> None:
    """Another job taken passes the first over; once it is taken itself nobody knows who is first."""
    oldest = waiting("j1")
    line = Line(oldest, 3).after(waiting("j2"))
    assert (line.oldest, line.passed) == (oldest, 4)
    assert line.after(oldest) == Line()
    assert Line().after(oldest) == Line()
