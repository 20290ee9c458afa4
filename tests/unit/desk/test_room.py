"""Who may wait, and when the others are told to come again."""

from __future__ import annotations

from typing import Any

import pytest

from worker.desk.room import (
    BELIEVED,
    LEAST_S,
    LONGEST_LINE_S,
    REMEMBERED,
    SHORT_LINE_S,
    UNMEASURED_S,
    Line,
    Load,
    Room,
    Usual,
    size_of,
)
from worker.job import Job, Limits, parse

ROOM = Room(max_pending=4, max_wait_s=60)


def job(**fields: Any) -> Job:
    return parse(fields, fallback_id="job", limits=Limits())


@pytest.mark.parametrize(
    ("load", "own_s", "expected"),
    [
        (Load(), None, None),
        (Load(each_s=600), None, None),
        (Load(), 3600, None),
        (Load(3, ahead_s=50, left_s=5, each_s=10), None, None),
        (Load(3, ahead_s=55, left_s=5, each_s=10), None, 5),
        (Load(3, ahead_s=55, left_s=5, each_s=10), 1, None),
        (Load(1, ahead_s=20, left_s=5, each_s=10), 300, 20),
        (Load(1, ahead_s=59.5, left_s=5, each_s=1), None, LEAST_S),
        (Load(4, ahead_s=25, left_s=5, each_s=5), None, 5),
        (Load(4, ahead_s=20, left_s=0, each_s=5), None, 5),
        (Load(6, ahead_s=35, left_s=5, each_s=5), None, 15),
        (Load(4, ahead_s=90, left_s=2, each_s=20), None, 50),
        (Load(4, ahead_s=0.4, left_s=0.1, each_s=0.1), None, LEAST_S),
    ],
    ids=[
        "an idle worker",
        "an idle worker, slow jobs",
        "an idle worker, a huge job",
        "waits as long as it may",
        "would wait too long",
        "a short one fits in",
        "one too long for any wait comes when nothing is left",
        "no shorter than worth a call",
        "full: when the running one ends",
        "full, nothing runs yet: after a usual job",
        "overfull: when the places too many are free",
        "both: the longer of the two",
        "full of short jobs",
    ],
)
def test_whether_a_job_may_wait(load: Load, own_s: float | None, expected: float | None) -> None:
    """Bounded in number and in time; what is refused is told when it would be taken."""
    assert ROOM.retry_after_s(load, own_s) == expected


def test_a_burst_is_told_times_one_after_another() -> None:
    """At the pace at which places become free, and not all of them the same time."""
    line = Line()
    assert [line.place_s(3, each_s=2, now=100) for _ in range(4)] == [3, 5, 7, 9]


def test_the_line_shortens_as_time_passes() -> None:
    """Who is refused later stands behind those whose time is still to come, and behind nobody else."""
    line = Line()
    for _ in range(4):
        line.place_s(3, each_s=2, now=100)
    assert line.place_s(3, each_s=2, now=104) == 7
    assert line.place_s(3, each_s=2, now=1000) == 3


def test_nobody_is_sent_away_for_ever() -> None:
    """A line is bounded, and another one stands beside it; on the strength of a guess it is short."""
    line = Line()
    assert [line.place_s(3, each_s=100, now=0) for _ in range(7)] == [3, 103, 203, 303, 3, 103, 203]
    line = Line()
    told = [line.place_s(3, each_s=10, now=0, longest_s=Usual().longest_line_s) for _ in range(7)]
    assert told == [3, 13, 23, 33, 3, 13, 23]
    assert SHORT_LINE_S < LONGEST_LINE_S


def test_an_idle_worker_has_no_line() -> None:
    """Those who were told to come are in nobody's way any more."""
    line = Line()
    for _ in range(50):
        line.place_s(3, each_s=2, now=0)
    line.forget()
    assert line.place_s(1, each_s=2, now=0) == 1


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"params": {"prompt": "x", "steps": 20, "width": 1000, "height": 500, "batch_size": 2}}, 20.0),
        ({"params": {"prompt": "x", "steps": 20, "width": 1000}}, None),
        ({"params": {"prompt": "x", "width": 512, "height": 512}}, None),
        ({"request": {"steps": 20, "width": 1000, "height": 1000}}, 20.0),
        ({"request": {"steps": 20, "width": 1000, "height": 1000, "n_iter": 2, "batch_size": 3}}, 120.0),
        ({"request": {"steps": 20, "width": 1000}}, None),
        ({"request": {"steps": "20", "width": 1000, "height": 1000}}, None),
        ({"request": {"steps": True, "width": 1000, "height": 1000}}, None),
        ({"request": {"steps": -20, "width": 1000, "height": 1000}}, None),
        ({"request": {"steps": 10**30, "width": 1000, "height": 1000}}, None),
        ({"request": {"steps": 20, "width": 1000, "height": 1000, "n_iter": None}}, None),
        ({"workflow": {"1": {"class_type": "KSampler", "inputs": {"steps": 20}}}}, None),
    ],
)
def test_the_size_of_a_job(fields: dict[str, Any], size: float | None) -> None:
    """Steps times megapixels times images, where the job says all of it in plain numbers."""
    assert size_of(job(**fields)) == size


def test_before_anything_was_measured_a_job_takes_the_usual_time() -> None:
    """Whatever its size."""
    usual = Usual()
    assert usual.estimate_s(100.0, UNMEASURED_S) == UNMEASURED_S
    usual.observe(None, None)
    usual.observe(5.0, None)
    assert usual.estimate_s(100.0, UNMEASURED_S) == UNMEASURED_S


def test_the_pace_is_that_of_jobs_that_load_nothing() -> None:
    """A first job that had to load its model, or was slow for another reason, keeps nobody away who comes later."""
    usual = Usual()
    assert usual.pace_s(20.0) == 20.0
    for seconds in (2.0, 60.0):
        usual.observe(None, seconds)
    assert usual.pace_s(20.0) == 2.0
    assert usual.pace_s(1.0) == 1.0
    for _ in range(REMEMBERED):
        usual.observe(10.0, 4.0)
    assert usual.pace_s(20.0) == 4.0
    assert usual.longest_line_s == LONGEST_LINE_S


def test_a_job_takes_its_time_in_proportion() -> None:
    """Twice the steps, pixels or images: twice the seconds of the jobs seen; but no size makes it incredible."""
    usual = Usual()
    usual.observe(10.0, 4.0)
    assert usual.estimate_s(20.0, 99.0) == pytest.approx(8.0)
    assert usual.estimate_s(None, 99.0) == 99.0
    assert usual.estimate_s(10_000.0, 99.0) == pytest.approx(4.0 * BELIEVED)
    assert usual.estimate_s(0.001, 99.0) == pytest.approx(4.0 / BELIEVED)


def test_the_usual_job_follows_what_is_seen() -> None:
    """After some larger ones, the larger one is the usual."""
    usual = Usual()
    usual.observe(10.0, 4.0)
    for _ in range(30):
        usual.observe(40.0, 12.0)
    assert usual.estimate_s(40.0, 99.0) == pytest.approx(12.0, rel=0.01)
