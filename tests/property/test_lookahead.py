"""When the next delivery is asked for: never beyond the window, later the longer the engine is busy."""

from __future__ import annotations

import math

from hypothesis import assume, given
from hypothesis import strategies as st

from worker.lookahead import GRAIN_S, SLACK_S, Pace, when

seconds = st.floats(0, 10_000, allow_nan=False)
paces = st.builds(Pace, prepare_s=seconds, generate_s=seconds)
unknown = st.builds(Pace, prepare_s=st.none() | seconds, generate_s=st.none() | seconds).filter(
    lambda pace: pace.prepare_s is None or pace.generate_s is None
)
windows = st.integers(1, 32)


def asked(held: int, left: float | None, window: int, pace: Pace) -> float:
    waiting = held - (left is not None and held > 0)
    return when(held=held, running_left_s=left, waiting=waiting, window=window, pace=pace)


@given(st.integers(0, 40), st.none() | seconds, windows, paces | unknown)
def test_it_is_a_wait_or_never(held: int, left: float | None, window: int, pace: Pace) -> None:
    """Never negative, never a number that is none, and no wait so short that it would not end."""
    wait = asked(held, left, window, pace)
    assert wait == 0 or wait >= GRAIN_S


@given(windows, st.none() | seconds, paces | unknown)
def test_an_empty_worker_asks_at_once_and_a_full_one_never(window: int, left: float | None, pace: Pace) -> None:
    """Whatever was measured."""
    assert asked(0, None, window, pace) == 0
    assert asked(window, left, window, pace) == math.inf
    assert asked(window + 1, left, window, pace) == math.inf


@given(st.integers(2, 32), unknown)
def test_before_anything_was_measured_one_is_prepared_beside_the_running(window: int, pace: Pace) -> None:
    """Two at most, when the window allows."""
    assert asked(1, None, window, pace) == 0
    if window > 2:
        assert asked(2, None, window, pace) == math.inf


@given(st.integers(1, 30), seconds, seconds, windows, paces)
def test_the_longer_the_engine_is_busy_the_later_the_next_is_asked_for(
    held: int, left: float, more: float, window: int, pace: Pace
) -> None:
    """Monotone in what the running generation takes yet."""
    assert asked(held, left, window, pace) <= asked(held, left + more, window, pace)


@given(st.integers(1, 30), seconds, windows, paces, seconds)
def test_the_slower_the_preparation_the_earlier(held: int, left: float, window: int, pace: Pace, more: float) -> None:
    """Monotone in the time to prepare one."""
    assert pace.prepare_s is not None
    slower = Pace(prepare_s=pace.prepare_s + more, generate_s=pace.generate_s)
    assert asked(held, left, window, slower) <= asked(held, left, window, pace)


@given(st.integers(1, 29), seconds, windows, paces)
def test_the_more_are_held_the_later(held: int, left: float, window: int, pace: Pace) -> None:
    """Monotone in the number of deliveries that need the engine."""
    assert asked(held, left, window, pace) <= asked(held + 1, left, window, pace)


@given(seconds, st.integers(2, 32), paces)
def test_the_next_is_ready_before_the_engine_is_free(left: float, window: int, pace: Pace) -> None:
    """What is asked for after the wait has at least the average time to be prepared, where there is that much."""
    assert pace.prepare_s is not None
    wait = asked(1, left, window, pace)
    assume(wait > 0)
    assert left - wait >= pace.prepare_s + SLACK_S - 1e-6


@given(st.lists(st.none() | seconds, max_size=20))
def test_averages_stay_within_what_was_measured(measured: list[float | None]) -> None:
    """None before the first measurement, and None leaves an average alone."""
    pace = Pace()
    for one in measured:
        pace.observe(generate=one)
    seen = [one for one in measured if one is not None]
    assert (pace.generate_s is None) == (not seen)
    if pace.generate_s is not None:
        assert min(seen) - 1e-6 <= pace.generate_s <= max(seen) + 1e-6
    assert (pace.prepare_s, pace.settle_s) == (None, None)
