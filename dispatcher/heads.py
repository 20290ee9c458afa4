"""The first waiting jobs of each model, remembered for a moment. No I/O.

A batch of decisions looks at the heads of hundreds of models; most of them were looked at a moment ago. What is
remembered may be taken by another process meanwhile: the store tells when the job is to be granted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dispatcher.words import Key, Waiting

FRESH_S = 2.0


@dataclass(slots=True)
class _Entry:
    jobs: list[Waiting]
    more: bool
    until: float


class Heads:
    """Times are of the loop, in seconds."""

    def __init__(self) -> None:
        self._entries: dict[Key, _Entry] = {}

    def missing(self, keys: Iterable[Key], now: float) -> list[Key]:
        """Of which of these the heads must be read."""
        return [
            key for key in keys if (entry := self._entries.get(key)) is None or entry.until <= now or self.is_short(key)
        ]

    def is_short(self, key: Key) -> bool:
        """Whether more jobs wait than were read, and all that were read are taken."""
        entry = self._entries.get(key)
        return entry is not None and entry.more and not entry.jobs

    def put(self, found: Mapping[Key, Iterable[Waiting]], asked: Mapping[Key, int], now: float) -> None:
        """What was read of the keys that were asked for, of each at most as many as is said there."""
        for key, each in asked.items():
            jobs = list(found.get(key, ()))
            self._entries[key] = _Entry(jobs, len(jobs) >= each, now + FRESH_S)

    def of(self, key: Key) -> list[Waiting]:
        entry = self._entries.get(key)
        return entry.jobs if entry is not None else []

    def take(self, job: Waiting) -> None:
        """The job waits no longer, or is none to rely on."""
        entry = self._entries.get(job.key)
        if entry is not None:
            entry.jobs = [one for one in entry.jobs if one.id != job.id]

    def forget(self, keys: Iterable[Key]) -> None:
        """Others may come before what is known of these."""
        for key in keys:
            self._entries.pop(key, None)

    def prune(self, now: float) -> None:
        """Forget what is too old to be used."""
        for key in [key for key, entry in self._entries.items() if entry.until <= now]:
            del self._entries[key]
