"""When the next delivery is asked for, example by example: the window, the places beside it, and the time it takes."""

from __future__ import annotations

import math

import pytest

from worker.lookahead import SLACK_S, Held, Pace, when

PACE = Pace(prepare_s=1.0, generate_s=10.0)


def asked(held: Held, *, window: int = 3, places: int = 2, pace: Pace = PACE) -> float:
    return when(held, window=window, places=places, pace=pace)


def test_alone_with_parked_jobs_the_engine_gets_another_at_once() -> None:
    """Nobody can tell when their models come."""
    assert asked(Held()) == asked(Held(parked=1)) == asked(Held(parked=2)) == asked(Held(parked=4)) == 0


@pytest.mark.parametrize(
    ("held", "full"),
    [
        (Held(ready=3), True),
        (Held(ready=2, running=True, running_left_s=0.0), True),
        (Held(ready=2, parked=2), False),
        (Held(ready=2, parked=3), True),
        (Held(ready=1, parked=3), False),
        (Held(parked=4), False),
        (Held(parked=5), True),
    ],
)
def test_the_window_holds_beside_the_places(held: Held, full: bool) -> None:
    """Two places beside a window of three: five at most are held before the engine."""
    assert (asked(held) == math.inf) is full


def test_without_places_everything_is_in_the_window() -> None:
    """As it is on a worker that parks nobody."""
    assert asked(Held(parked=2), places=0) == 0
    assert asked(Held(parked=3), places=0) == math.inf


def test_while_the_engine_is_busy_the_next_comes_as_late_as_it_may() -> None:
    """One and a half times the measured time to prepare one, and some slack, before the engine is free."""
    running = Held(running=True, running_left_s=8.0)
    assert asked(running) == 8.0 - 1.5 - SLACK_S
    assert asked(Held(parked=2, running=True, running_left_s=8.0)) == asked(running)
    assert asked(Held(ready=1, running=True, running_left_s=8.0)) == 8.0 + 10.0 - 1.5 - SLACK_S


def test_one_that_keeps_a_slot_for_its_model_is_no_work_for_the_engine() -> None:
    """It is ready some time later; the engine must not wait for it."""
    assert asked(Held(parked=3, running=True, running_left_s=1.0)) == 0


def test_before_anything_was_measured_one_is_prepared_beside_the_running() -> None:
    """Those that wait for their models do not stand in its way."""
    assert asked(Held(parked=2, running=True), pace=Pace()) == 0
    assert asked(Held(ready=1, parked=2, running=True), pace=Pace()) == math.inf
