"""What the contract names and this version does not have yet; each release takes its part out of here."""

from __future__ import annotations

_SUFFIXES = {
    "REDIS_": ("URL", "URL_FILE", "STREAM", "GROUP"),
    "": ("SQS_QUEUE_URL",),
}

LATER = frozenset(f"WORKER_{group}{name}" for group, names in _SUFFIXES.items() for name in names)
"""Variables that are refused, so that nobody believes them to have an effect."""

LATER_VALUES: dict[str, frozenset[str]] = {
    "WORKER_QUEUE": frozenset({"salad", "sqs", "redis"}),
}
"""Values of variables that exist already."""
