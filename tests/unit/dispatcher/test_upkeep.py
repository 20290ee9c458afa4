"""How often the dispatcher looks after itself."""

from __future__ import annotations

import pytest

from dispatcher.upkeep import SELDOM_MOST, Pace, pause


@pytest.mark.parametrize(
    ("every_s", "took_s", "pause_s"),
    [(2.0, 0.0, 2.0), (2.0, 0.1, 2.0), (2.0, 0.2, 4.0), (2.0, 0.4, 8.0), (2.0, 15.0, 8.0), (0.0, 3.0, 0.0)],
)
def test_what_takes_long_is_done_the_more_seldom(every_s: float, took_s: float, pause_s: float) -> None:
    """A twentieth of the time at most, but never less often than a quarter of what it should be."""
    assert pause(every_s, took_s, SELDOM_MOST * every_s) == pause_s


def test_who_plans_keeps_the_role_between_two_plans() -> None:
    """However long a plan takes; and 25 s after the process fell silent another has it, as the documents say."""
    pace = Pace()
    assert pace.role == 25.0
    assert pace.role > pause(pace.coverage, 1e9, SELDOM_MOST * pace.coverage)
