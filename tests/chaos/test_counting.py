"""Attempts counted over many random histories: what `tests/property/test_counting.py` samples."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.support.counting import KILLS, QUEUES, Step, histories, run_counted
from tests.support.sqs import Server

pytest_plugins = ("tests.support.sqs_fixtures",)
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]

MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@MANY
@given(history=histories())
def test_every_queue_begins_the_same_attempts(sqs_server: Server, history: list[Step]) -> None:
    """Whoever fails, and whichever worker vanishes in mid-job: each ends after the same attempt."""
    first, *others = [run_counted(kind, history, sqs_server) for kind in QUEUES]
    assert all(other == first for other in others)


@pytest.mark.parametrize("kind", QUEUES)
@MANY
@given(history=histories(*KILLS))
def test_no_attempt_beyond_the_last(kind: str, sqs_server: Server, history: list[Step]) -> None:
    """Also where workers vanish while they settle: what is on record is never exceeded, and reached exactly."""
    assert run_counted(kind, history, sqs_server)
