"""How fast bytes come, by what was seen in the last half minute or so."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.models.speed import MEASURED_S, MEMORY_S, Speed, time_for


def seen(*readings: tuple[float, int], pause_s: float = 1e9) -> Speed:
    speed = Speed(pause_s)
    for now, count in readings:
        speed.saw(now, count)
    return speed


def test_nothing_is_told_before_enough_was_seen() -> None:
    """Some seconds, and some bytes; what came before the first reading says nothing."""
    assert seen().rate(0.0) is None
    assert seen((0, 10**9)).rate(MEASURED_S) is None
    assert seen((0, 10**9), (1, 100)).rate(MEASURED_S - 0.1) is None
    assert seen((0, 10**9), (1, 100)).rate(MEASURED_S) == 100 / MEASURED_S


def test_a_stall_slows_it_down_and_never_to_nothing() -> None:
    """While nothing comes it sinks, so that the time it takes grows."""
    speed = seen((0, 0), (10, 1000))
    assert [speed.rate(10), speed.rate(20), speed.rate(100)] == [100, 50, 10]


def test_a_pause_is_no_slowness() -> None:
    """When nothing was to come, what was measured before stands."""
    speed = seen((0, 0), (1, 100), (2, 100), (5, 300), pause_s=3)
    assert speed.rate(5) == speed.rate(10_000) == 100
    speed.saw(20_000, 10**9)
    speed.saw(20_001, 100)
    assert speed.rate(20_001) == 100


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_what_was_long_ago_is_forgotten(before: int, after: int) -> None:
    """A source that changes its speed is known by the new one after some of the memory's lengths."""
    speed = Speed()
    for second in range(200):
        speed.saw(second, before)
    for second in range(200, 200 + int(20 * MEMORY_S)):
        speed.saw(second, after)
    rate = speed.rate(199 + int(20 * MEMORY_S))
    assert rate is not None
    assert abs(rate - after) <= 1e-6 * (before + after)


def test_the_time_for_what_is_left() -> None:
    """Nobody can tell without a speed."""
    assert time_for(100, None) is None
    assert time_for(100, 50.0) == 2
    assert time_for(0, 50.0) == 0
