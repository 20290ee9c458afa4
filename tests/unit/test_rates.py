"""What a node measured of itself: only what was measured, and the latest counts most."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.rates import GAP_S, LEAST_BYTES, Moving, Speeds, averaged, speed
from worker.wire import Rates

MB = 1_000_000


def moved(*readings: tuple[float, int]) -> Moving:
    """A transfer after these readings of (time, bytes there)."""
    transfer = Moving()
    for now, done in readings:
        transfer.saw(done, now)
    return transfer


def test_nothing_is_told_before_it_was_measured() -> None:
    """A default would be an invention; the server that schedules has its own."""
    assert Speeds().rates() == Rates()
    assert Speeds().rates().to_json() == b"{}"


def test_a_transfer_is_as_fast_as_its_bytes_came() -> None:
    """From the first reading on: what a resumed one had before counts for nothing."""
    speeds = Speeds()
    speeds.downloaded(moved((10.0, 500 * MB), (11.0, 560 * MB), (12.0, 620 * MB)))
    assert speeds.rates() == Rates(network=60 * MB)


def test_standing_still_for_others_is_not_slow() -> None:
    """A transfer in the background stands still while jobs fetch: at most a few seconds of that count."""
    transfer = moved((0.0, 0), (1.0, 50 * MB), (601.0, 51 * MB), (602.0, 101 * MB))
    assert (transfer.bytes, transfer.seconds) == (101 * MB, 2.0 + GAP_S)


def test_what_began_anew_is_not_subtracted() -> None:
    """A source whose file changed on the way has the transfer start from nothing."""
    assert moved((0.0, 0), (1.0, 30 * MB), (2.0, 0), (3.0, 10 * MB)).bytes == 40 * MB


@pytest.mark.parametrize(("size", "seconds"), [(LEAST_BYTES - 1, 1.0), (5 * MB, 0.0)])
def test_too_little_tells_nothing(size: int, seconds: float) -> None:
    """A small file tells how long asking takes, and no clock tells of no time."""
    assert speed(size, seconds) is None
    speeds = Speeds()
    speeds.read(size, seconds)
    assert speeds.disk is None


def test_a_step_is_that_of_one_picture() -> None:
    """Pictures are made one after the other or together: seconds a step of each is what their number is worth."""
    speeds = Speeds()
    speeds.generated(8.0, 20, 4)
    assert speeds.rates().step == 0.1
    speeds.generated(3.0, None, 1)
    speeds.generated(3.0, 0, 1)
    assert speeds.rates().step == 0.1
    speeds.generated(20.0, 20, 0)
    assert speeds.rates().step == pytest.approx(0.1 + 0.3 * 0.9)


def test_four_digits_are_told() -> None:
    """More would only make every report differ from the last."""
    speeds = Speeds(disk=123456789.123, load=8.123456)
    assert speeds.rates() == Rates(disk=123500000.0, load=8.123)


@given(st.lists(st.floats(0.001, 1e12), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_an_average_stays_within_what_was_measured(values: list[float]) -> None:
    """Whatever is measured, in whatever order; and it goes to a new level within some measurements."""
    found: float | None = None
    for value in values:
        found = averaged(found, value)
    assert found is not None
    assert min(values) * (1 - 1e-9) <= found <= max(values) * (1 + 1e-9)
    for _ in range(20):
        found = averaged(found, 1.0)
    assert found == pytest.approx(1.0, abs=1e-3 * max(1.0, *values))


@pytest.mark.parametrize("value", [None, 0.0, -1.0, math.inf, math.nan])
def test_what_is_no_measurement_changes_nothing(value: float | None) -> None:
    """A server that tells no time of loading did not load in no time."""
    assert averaged(2.0, value) == 2.0
    assert averaged(None, value) is None
