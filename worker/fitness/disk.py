"""The disk: always told, and judged where the operator says how much there has to be."""

from __future__ import annotations

from collections.abc import Callable

from worker.errors import WorkerError
from worker.fitness.verdict import Name, Reading


class DiskRoom:
    """Bytes of the disk that this worker may fill: what is free, and what it has written before.

    ``room`` raises `WorkerError` or `OSError` where nobody can tell.
    """

    name: Name = "disk"

    def __init__(self, wanted: float | None, room: Callable[[], int]) -> None:
        self.wanted = wanted
        self._room = room

    async def measure(self) -> Reading:
        """Nothing raises: a disk that nobody can tell of is none."""
        try:
            return Reading(self._room(), lasting=True)
        except (WorkerError, OSError) as error:
            return Reading(None, f"cannot be told: {error}")
