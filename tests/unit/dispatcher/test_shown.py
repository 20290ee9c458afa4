"""Jobs as users see them."""

from __future__ import annotations

from datetime import UTC, datetime

from dispatcher.api import shown
from dispatcher.store.base import JobRow

NOW = datetime(2026, 3, 1, tzinfo=UTC)
WAITING = JobRow("j", "waiting", "", 0, (), NOW, 0, (), 0.0)
RUNNING = JobRow("j", "leased", "", -1, (), NOW, 1, (), 0.0, node="n1", cancelling=True, progress=0.0, hop="generate")


def test_what_is_zero_is_known() -> None:
    """A priority of 0, no delivery yet and a progress of nothing are shown; what there is not is left out."""
    assert shown.job(WAITING) == {
        "id": "j",
        "status": "waiting",
        "priority": 0,
        "models": [],
        "queued_at": "2026-03-01T00:00:00.000Z",
        "deliveries": 0,
        "attempts": [],
        "code": None,
        "result": None,
    }
    told = shown.job(RUNNING, result=False)
    assert (told["priority"], told["progress"], told["cancelling"]) == (-1, 0.0, True)
    assert "result" not in told
