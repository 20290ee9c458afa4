"""What is told of models that are awaited, and what their last error means."""

from __future__ import annotations

from tests.support.depot import item
from worker.errors import WorkerError
from worker.models.base import InFlight
from worker.provisioning import ended_by, progress_text, reasons_of


def test_reasons_stay_short() -> None:
    """However many transfers there are."""
    flights = [InFlight(item("x", kind="lora").wanted.place, 3 * 10**9, 15 * 10**8)] * 10
    line = progress_text(flights[0])
    assert line == "lora/x: 1.5 of 3.0 GB"
    assert reasons_of(12, 2, flights) == ("models_missing", "2 of 12 models are there", *[line] * 8, "and 2 more")


def test_a_bug_stays_a_bug() -> None:
    """An error that is neither the operator's nor a dependency's comes out as it is."""
    error = WorkerError("unforeseen")
    assert ended_by(error, "LIST[0]") is error
