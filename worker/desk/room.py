"""Whether one more job may wait, and when a place will be free, as a pure decision."""

from __future__ import annotations

from dataclasses import dataclass

UNMEASURED_S = 5.0
"""What a generation is taken to last before one was seen."""

LEAST_S = 1.0


@dataclass(frozen=True, slots=True)
class Load:
    """What stands before a new job: ``waiting`` at the desk, ``held`` of those that still need the engine.

    ``left_s`` is what the running generation takes yet, 0 without one; ``generate_s`` the average, None before any.
    """

    waiting: int = 0
    held: int = 0
    left_s: float = 0.0
    generate_s: float | None = None

    @property
    def each_s(self) -> float:
        return UNMEASURED_S if self.generate_s is None else self.generate_s

    @property
    def wait_s(self) -> float:
        """How long a job that comes now waits until it may begin."""
        return self.left_s + (self.waiting + self.held) * self.each_s


@dataclass(frozen=True, slots=True)
class Room:
    """What may wait: so many jobs, and so long, the job's own time included. An idle engine takes any job."""

    max_pending: int
    max_wait_s: float

    def retry_after_s(self, load: Load) -> float | None:
        """Seconds until a job may come again; None: it may come in now."""
        over_s = 0.0
        if load.wait_s > 0:
            over_s = load.wait_s + load.each_s - self.max_wait_s
        if load.waiting >= self.max_pending:
            soonest_s = load.left_s if load.left_s > 0 else load.each_s
            over_s = max(over_s, soonest_s + (load.waiting - self.max_pending) * load.each_s)
        return None if over_s <= 0 else max(over_s, LEAST_S)
