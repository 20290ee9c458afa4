"""What one look at the database's clock says of ours."""

from __future__ import annotations

from datetime import timedelta

import pytest

from dispatcher.store.reading import Reading
from tests.support.clock import START


@pytest.mark.parametrize(
    ("server_s", "took_s", "agrees", "is_sharp"),
    [
        (0.0, 0.001, True, True),
        (1.5, 0.001, True, True),
        (0.5, 30.0, True, False),
        (30.0, 30.0, True, False),
        (3600.0, 0.01, False, True),
        (-3600.0, 0.01, False, True),
        (3600.0, 30.0, False, False),
    ],
)
def test_being_held_up_is_not_being_wrong(server_s: float, took_s: float, agrees: bool, is_sharp: bool) -> None:
    """A clock is wrong only where no moment of the question fits, and by how much only a quick answer tells."""
    reading = Reading(START, START + timedelta(seconds=server_s), START + timedelta(seconds=took_s))
    assert (reading.agrees, reading.is_sharp) == (agrees, is_sharp)
