"""Whether one more job may wait, how long it would, and when a place will be free, as pure decisions."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median_low
from typing import Any

from worker.job import Job

UNMEASURED_S = 5.0
"""What a generation is taken to last before one was seen."""

LEAST_S = 1.0
"""The shortest time after which anybody is asked to come again."""

LONGEST_LINE_S, SHORT_LINE_S = 300.0, 30.0
"""How far apart those who were refused are spread at most, and before any job was measured."""

REMEMBERED = 15
"""Generations by which the pace of the work is told."""

BELIEVED = 10.0
"""How many times longer or shorter than the usual job one is taken to be, whatever its size."""

_PIXELS = 1_000_000


@dataclass(frozen=True, slots=True)
class Load:
    """What stands before a job that comes now: ``waiting`` jobs at the desk, and ``ahead_s`` of work in all.

    ``left_s`` of it is what the running generation takes yet, 0 without one; ``each_s`` is the usual job's.
    """

    waiting: int = 0
    ahead_s: float = 0.0
    left_s: float = 0.0
    each_s: float = UNMEASURED_S


@dataclass(frozen=True, slots=True)
class Room:
    """What may wait: so many jobs, and so long, the job's own time included. An idle engine takes any job."""

    max_pending: int
    max_wait_s: float

    def retry_after_s(self, load: Load, own_s: float | None = None) -> float | None:
        """Seconds until a job that takes ``own_s`` (None: the usual time) may come again; None: it may come in now."""
        own_s = load.each_s if own_s is None else own_s
        over_s = min(load.ahead_s + own_s - self.max_wait_s, load.ahead_s)
        if load.waiting >= self.max_pending:
            first_s = load.left_s if load.left_s > 0 else load.each_s
            over_s = max(over_s, first_s + (load.waiting - self.max_pending) * load.each_s)
        return None if over_s <= 0 else max(over_s, LEAST_S)


@dataclass(slots=True)
class Line:
    """Those who were refused and told when to come again, one after another at the pace of the work.

    Without it all who are refused in a burst would come back at once, and all but one be refused once more. Nothing is
    kept for them: who comes first takes the place. It shortens as time passes, and has an end: who would stand behind
    that begins another line beside it, and may be refused once more.
    """

    last_at: float | None = None
    """When the last of them may come; event loop time."""

    def place_s(self, soonest_s: float, *, each_s: float, now: float, longest_s: float = LONGEST_LINE_S) -> float:
        """Seconds after which the next one may come, when there is a place in ``soonest_s`` and one more after each
        ``each_s``; at most ``longest_s`` after the first."""
        first_at = now + soonest_s
        at = first_at if self.last_at is None else max(first_at, self.last_at + each_s)
        if at > first_at + longest_s:
            at = first_at
        self.last_at = at
        return at - now

    def forget(self) -> None:
        """Nobody is in the way any more."""
        self.last_at = None


@dataclass(slots=True)
class Usual:
    """What jobs took: ``latest`` generations in seconds, without loading their models; and running averages of those
    whose size is known, how large they were and how many ``seconds`` they took."""

    size: float | None = None
    seconds: float = 0.0
    latest: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def observe(self, size: float | None, seconds: float | None) -> None:
        """Note a job that was done; without its time it teaches nothing."""
        if seconds is None:
            return
        self.latest.append(seconds)
        if size is None:
            return
        if self.size is None:
            self.size, self.seconds = size, seconds
        else:
            self.size += 0.3 * (size - self.size)
            self.seconds += 0.3 * (seconds - self.seconds)

    def pace_s(self, each_s: float) -> float:
        """How soon one job may follow another when no model has to be loaded between them; at most ``each_s``.

        Half of the latest took longer: who comes too early asks again, but while all come too late the engine idles.
        """
        return min(median_low(self.latest), each_s) if self.latest else each_s

    @property
    def longest_line_s(self) -> float:
        """How far those who are refused may be spread: not far on the strength of a guess."""
        return LONGEST_LINE_S if self.latest else SHORT_LINE_S

    def estimate_s(self, size: float | None, each_s: float) -> float:
        """What a job of this size will take: in proportion to its size, within `BELIEVED`; else ``each_s``."""
        if size is None or self.size is None:
            return each_s
        return self.seconds * min(max(size / self.size, 1 / BELIEVED), BELIEVED)


def size_of(job: Job) -> float | None:
    """How much work a job is: its steps times its megapixels times its images; None where it does not say.

    A graph, a template and what leaves steps or sides to the server do not say; images that it does not count are one.
    """
    if job.params is not None:
        params = job.params
        return _size(params.steps, params.width, params.height, params.batch_size, 1)
    if job.request is not None:
        asked = job.request
        sides = asked.get("steps"), asked.get("width"), asked.get("height")
        return _size(*sides, asked.get("batch_size", 1), asked.get("n_iter", 1))
    return None


def _size(*factors: Any) -> float | None:
    product = 1.0
    for factor in factors:
        if type(factor) is not int or not 0 < factor < 1_000_000:
            return None
        product *= factor
    return product / _PIXELS
