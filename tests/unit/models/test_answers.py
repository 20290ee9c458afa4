"""Answers that say one thing and mean another."""

from __future__ import annotations

import httpx
import pytest

from worker.models.answers import Part, Span, as_meant, part_of
from worker.models.connection import Head
from worker.models.hub import Answer

PART = {"content-range": "bytes 10-19/40", "content-length": "10"}


def test_a_part_may_come_with_status_200() -> None:
    """rclone's S3 server sends the range that was asked for, says which, and calls it 200."""
    assert part_of(as_meant(Head(200, PART)), 10) == Part(Span(10, 20), 40)
    assert Answer(200, httpx.Headers(PART), "https://models.example/x").size == 40


@pytest.mark.parametrize(
    "head",
    [
        Head(200, {"content-length": "40"}),
        Head(200, PART | {"content-length": "40"}),
        Head(200, PART | {"content-range": "bytes 10-19/*"}),
        Head(206, PART),
        Head(416, {"content-range": "bytes */40"}),
    ],
)
def test_all_else_is_what_it_says(head: Head) -> None:
    """A whole file with a stray header is a whole file."""
    assert as_meant(head) is head
