"""Named instants between effects, where tests stop or kill the process; they cost nothing otherwise."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class Effect(StrEnum):
    """Everything a job does that others can see; each is done under its lease, between two failpoints."""

    UPLOAD = "upload"
    MARK = "mark"
    FAILURE = "failure"
    WEBHOOK = "webhook"
    ACK = "ack"
    NACK = "nack"
    REJECT = "reject"


POINTS = (
    "received",
    "admitted",
    "generated",
    "verified",
    *(f"{when}_{effect}" for effect in Effect for when in ("before", "after")),
)
"""Every failpoint: the hops without effects, and both sides of every effect."""

_hook: Callable[[str], None] | None = None


def install(hook: Callable[[str], None] | None) -> None:
    """Have the hook called with the name of each point that is reached; None removes it."""
    global _hook
    _hook = hook


def reached(point: str) -> None:
    if _hook is not None:
        _hook(point)
