"""Room and line: what holds whatever the load."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from worker.desk.room import LEAST_S, LONGEST_LINE_S, Line, Load, Room, Usual

SECONDS = st.floats(0, 10_000)
JOBS = st.floats(0.01, 1000)
LOADS = st.builds(Load, st.integers(0, 100), SECONDS, st.floats(0, 100), JOBS)
ROOMS = st.builds(Room, st.integers(1, 64), st.floats(0.1, 3600))


@given(room=ROOMS, load=LOADS, own_s=JOBS)
def test_who_comes_in_finds_room(room: Room, load: Load, own_s: float) -> None:
    """Taken means: a place was free, and the job either waits for nothing or ends within the time."""
    wait_s = room.retry_after_s(load, own_s)
    if wait_s is None:
        assert load.waiting < room.max_pending
        assert load.ahead_s == 0 or load.ahead_s + own_s <= room.max_wait_s + 1e-6
    else:
        assert wait_s >= LEAST_S


@given(room=ROOMS, load=LOADS, shorter=JOBS, longer=JOBS)
def test_a_shorter_job_is_never_worse_off(room: Room, load: Load, shorter: float, longer: float) -> None:
    """Where the longer one is taken, the shorter one is, and it is never told to wait longer."""
    shorter, longer = sorted((shorter, longer))
    first, second = room.retry_after_s(load, shorter), room.retry_after_s(load, longer)
    assert (first or 0.0) <= (second or 0.0)


@given(room=ROOMS, load=LOADS, own_s=JOBS, others=st.integers(0, 63))
def test_who_comes_again_when_told_to_is_taken(room: Room, load: Load, own_s: float, others: int) -> None:
    """When the work before it is done by so much, and by then as many jobs have left as were too many."""
    wait_s = room.retry_after_s(load, own_s)
    if wait_s is not None:
        left_s = load.ahead_s - wait_s - 1e-6
        later = Load(min(others, room.max_pending - 1), max(0.0, left_s), each_s=load.each_s)
        assert room.retry_after_s(later, own_s) is None


@given(calls=st.lists(st.tuples(st.floats(0, 60), st.floats(1, 100), st.floats(0.1, 50)), min_size=1, max_size=60))
def test_nobody_is_sent_before_there_is_room_nor_behind_the_longest_line(
    calls: list[tuple[float, float, float]],
) -> None:
    """Whatever the order and the pace of refusals."""
    line, now = Line(), 0.0
    for passed, soonest_s, each_s in calls:
        now += passed
        told = line.place_s(soonest_s, each_s=each_s, now=now)
        assert soonest_s - 1e-6 <= told <= soonest_s + LONGEST_LINE_S + 1e-6


@given(burst=st.integers(2, 100), soonest_s=st.floats(1, 60), each_s=st.floats(0.5, 3))
def test_a_burst_never_comes_back_together(burst: int, soonest_s: float, each_s: float) -> None:
    """A job's time lies between any two of them."""
    line = Line()
    told = [line.place_s(soonest_s, each_s=each_s, now=0.0) for _ in range(burst)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(told)]
    assert all(abs(gap - each_s) < 1e-6 for gap in gaps)


@given(seen=st.lists(st.tuples(JOBS, JOBS), min_size=1, max_size=20), size=JOBS)
def test_estimates_stay_believable(seen: list[tuple[float, float]], size: float) -> None:
    """No job is taken to be more than ten times as long, or less than a tenth as long, as the longest and the
    shortest seen."""
    usual = Usual()
    for one, seconds in seen:
        usual.observe(one, seconds)
    times = [seconds for _, seconds in seen]
    assert min(times) / 10 - 1e-6 <= usual.estimate_s(size, 5.0) <= max(times) * 10 + 1e-6
