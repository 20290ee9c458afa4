"""Wall time: aware, corrected by what servers say, and written one way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from tests.support.clock import START, FakeClock
from worker.clock import CorrectedClock, SystemClock, isoformat


def test_the_system_clock_is_aware_and_goes_on() -> None:
    """UTC, never naive."""
    first = SystemClock().now()
    assert first.tzinfo is UTC
    assert SystemClock().now() >= first


@pytest.mark.parametrize(
    ("seen", "offset"),
    [(0, 0), (1, 0), (-2, 0), (3, 3), (-3600, -3600), (86400, 86400)],
)
def test_a_clock_is_corrected_by_what_is_more_than_noise(seen: int, offset: int) -> None:
    """`Date` has whole seconds: two of them are no offset."""
    base = FakeClock()
    clock = CorrectedClock(base)
    clock.observe(START + timedelta(seconds=seen))
    assert clock.offset == timedelta(seconds=offset)
    base.advance(timedelta(minutes=1))
    assert clock.now() == START + timedelta(minutes=1, seconds=offset)


def test_a_clock_that_was_set_right_loses_its_correction() -> None:
    """The latest observation counts alone."""
    base = FakeClock()
    clock = CorrectedClock(base)
    clock.observe(START + timedelta(hours=1))
    base.advance(timedelta(hours=1))
    clock.observe(START + timedelta(hours=1, seconds=1))
    assert clock.offset == timedelta(0)


def test_times_are_written_in_utc_with_milliseconds() -> None:
    """Whatever zone they came in."""
    at = datetime(2026, 3, 1, 14, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    assert isoformat(at) == "2026-03-01T12:00:00.123Z"
