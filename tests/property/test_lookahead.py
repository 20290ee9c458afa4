"""When the next delivery is asked for: never beyond the window, later the longer the engine is busy."""

from __future__ import annotations

import dataclasses
import math

from hypothesis import assume, given
from hypothesis import strategies as st

from worker.lookahead import GRAIN_S, SLACK_S, Held, Pace, when

seconds = st.floats(0, 10_000, allow_nan=False)
paces = st.builds(Pace, prepare_s=seconds, generate_s=seconds)
unknown = st.builds(Pace, prepare_s=st.none() | seconds, generate_s=st.none() | seconds).filter(
    lambda pace: pace.prepare_s is None or pace.generate_s is None
)
windows = st.integers(1, 32)
places = st.integers(0, 8)
unparked = st.builds(Held, ready=st.integers(0, 30), running=st.booleans(), running_left_s=st.none() | seconds)
holdings = st.builds(
    Held, ready=st.integers(0, 30), parked=st.integers(0, 40), running=st.booleans(), running_left_s=st.none() | seconds
)


def ready(count: int) -> Held:
    return Held(ready=count)


@given(holdings, windows, places, paces | unknown)
def test_it_is_a_wait_or_never(held: Held, window: int, places: int, pace: Pace) -> None:
    """Never negative, never a number that is none, and no wait so short that it would not end."""
    wait = when(held, window=window, places=places, pace=pace)
    assert wait == 0 or wait >= GRAIN_S


@given(windows, places, paces | unknown, st.data())
def test_an_empty_worker_asks_at_once_and_a_full_one_never(
    window: int, places: int, pace: Pace, data: st.DataObject
) -> None:
    """Whatever was measured, and whoever waits for models in a place beside the window."""
    parked = data.draw(st.integers(0, places))
    assert when(Held(parked=parked), window=window, places=places, pace=pace) == 0
    more = data.draw(st.integers(0, 3))
    running = data.draw(st.booleans())
    full = Held(ready=window - running + more, parked=parked, running=running, running_left_s=0.0)
    assert when(full, window=window, places=places, pace=pace) == math.inf


@given(unparked, windows, places, paces | unknown, st.data())
def test_who_has_a_place_to_park_changes_nothing(
    held: Held, window: int, places: int, pace: Pace, data: st.DataObject
) -> None:
    """The next delivery comes when it would come without them."""
    parked = dataclasses.replace(held, parked=data.draw(st.integers(0, places)))
    wait = when(held, window=window, places=places, pace=pace)
    assert when(parked, window=window, places=places, pace=pace) == wait


@given(unparked, windows, places, st.integers(1, 32), paces | unknown)
def test_who_finds_no_place_to_park_keeps_a_slot_and_is_no_work_for_the_engine(
    held: Held, window: int, places: int, more: int, pace: Pace
) -> None:
    """The window is that much smaller, and what is left of it is filled as if they were not there."""
    assume(more < window)
    crowded = dataclasses.replace(held, parked=places + more)
    wait = when(held, window=window - more, places=places, pace=pace)
    assert when(crowded, window=window, places=places, pace=pace) == wait
    full = dataclasses.replace(held, parked=places + window)
    assert when(full, window=window, places=places, pace=pace) == math.inf


@given(st.integers(2, 32), unknown)
def test_before_anything_was_measured_one_is_prepared_beside_the_running(window: int, pace: Pace) -> None:
    """Two at most, when the window allows."""
    assert when(ready(1), window=window, places=0, pace=pace) == 0
    if window > 2:
        assert when(ready(2), window=window, places=0, pace=pace) == math.inf


@given(holdings, seconds, seconds, windows, places, paces)
def test_the_longer_the_engine_is_busy_the_later_the_next_is_asked_for(
    held: Held, left: float, more: float, window: int, places: int, pace: Pace
) -> None:
    """Monotone in what the running generation takes yet."""
    sooner, later = (dataclasses.replace(held, running=True, running_left_s=left_s) for left_s in (left, left + more))
    wait = when(sooner, window=window, places=places, pace=pace)
    assert wait <= when(later, window=window, places=places, pace=pace)


@given(holdings, windows, places, paces, seconds)
def test_the_slower_the_preparation_the_earlier(held: Held, window: int, places: int, pace: Pace, more: float) -> None:
    """Monotone in the time to prepare one."""
    assert pace.prepare_s is not None
    slower = Pace(prepare_s=pace.prepare_s + more, generate_s=pace.generate_s)
    wait = when(held, window=window, places=places, pace=pace)
    assert when(held, window=window, places=places, pace=slower) <= wait


@given(holdings, windows, places, paces)
def test_the_more_are_held_the_later(held: Held, window: int, places: int, pace: Pace) -> None:
    """Monotone in the number of deliveries that are ready or parked; models that come make nothing earlier."""
    wait = when(held, window=window, places=places, pace=pace)
    for more in (
        dataclasses.replace(held, ready=held.ready + 1),
        dataclasses.replace(held, parked=held.parked + 1),
    ):
        assert wait <= when(more, window=window, places=places, pace=pace)
    if held.parked:
        came = dataclasses.replace(held, ready=held.ready + 1, parked=held.parked - 1)
        assert wait <= when(came, window=window, places=places, pace=pace)


@given(seconds, st.integers(2, 32), paces)
def test_the_next_is_ready_before_the_engine_is_free(left: float, window: int, pace: Pace) -> None:
    """What is asked for after the wait has at least the average time to be prepared, where there is that much."""
    assert pace.prepare_s is not None
    wait = when(Held(running=True, running_left_s=left), window=window, places=0, pace=pace)
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
