"""Attempts are counted alike whether their queue keeps their causes or only the store does."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings

from tests.support.counting import KILLS, QUEUES, Step, histories, run_counted
from tests.support.sqs import Server

pytest_plugins = ("tests.support.sqs_fixtures",)

SAMPLE = settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SAMPLE
@given(history=histories())
def test_every_queue_begins_the_same_attempts(sqs_server: Server, history: list[Step]) -> None:
    """Whoever fails, and whichever worker vanishes in mid-job: each ends after the same attempt."""
    first, *others = [run_counted(kind, history, sqs_server) for kind in QUEUES]
    assert all(other == first for other in others)


@pytest.mark.parametrize("kind", QUEUES)
@SAMPLE
@given(history=histories(*KILLS))
@example(history=[Step("charged", "w1", "after_failure"), Step("charged", "w2", "after_nack")])
@example(history=[Step("charged", "w1")] * 2 + [Step("charged", "w2", "after_failure"), Step("disk_full", "w1")])
def test_no_attempt_beyond_the_last(kind: str, sqs_server: Server, history: list[Step]) -> None:
    """Also where workers vanish while they settle: what is on record is never exceeded, and reached exactly."""
    assert run_counted(kind, history, sqs_server)
