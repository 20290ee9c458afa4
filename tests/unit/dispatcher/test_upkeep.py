"""How often the dispatcher looks after itself."""

from __future__ import annotations

import pytest

from dispatcher.upkeep import pause


@pytest.mark.parametrize(
    ("every_s", "took_s", "pause_s"),
    [(2.0, 0.0, 2.0), (2.0, 0.1, 2.0), (2.0, 0.2, 4.0), (2.0, 0.4, 8.0), (2.0, 15.0, 8.0), (0.0, 3.0, 0.0)],
)
def test_what_takes_long_is_done_the_more_seldom(every_s: float, took_s: float, pause_s: float) -> None:
    """A twentieth of the time at most, but never less often than a quarter of what it should be."""
    assert pause(every_s, took_s) == pause_s
