"""Checks by script."""

from __future__ import annotations

from collections import deque

from worker.fitness.verdict import Name, Reading


class Scripted:
    """Gives or raises what it is given in turn, the last of it for ever."""

    def __init__(self, name: Name, wanted: float | None, *findings: float | Reading | Exception | None) -> None:
        self.name = name
        self.wanted = wanted
        self.measured = 0
        self._findings = deque(findings)

    async def measure(self) -> Reading:
        self.measured += 1
        found = self._findings.popleft() if len(self._findings) > 1 else self._findings[0]
        if isinstance(found, Exception):
            raise found
        return found if isinstance(found, Reading) else Reading(found)
