"""What would be lost if this node went away now: the one figure by which a platform may choose among its nodes."""

from __future__ import annotations

from collections.abc import Collection

from worker.live import Hop, LiveJob

COST_MOST = 100_000
"""SaladCloud's public interface takes no more."""

LEAST_CHANGE = 5


def cost_of(jobs: Collection[LiveJob], now: float) -> int:
    """0 without a job, else 1 and the seconds of GPU work at stake, `COST_MOST` at most; ``now`` by the loop."""
    if not jobs:
        return 0
    return min(COST_MOST, 1 + int(sum(seconds_at_stake(job, now) for job in jobs)))


def seconds_at_stake(job: LiveJob, now: float) -> float:
    """How long the server has worked on what is not yet safe: the running generation, or the one whose images we hold.

    A generation whose answer is of no use is lost already.
    """
    if job.hop is Hop.GENERATE:
        return max(0.0, now - job.hop_since)
    if job.hop is not Hop.IMAGES and job.made is None:
        return 0.0
    return next((span.ended - span.began for span in reversed(job.spans) if span.hop is Hop.GENERATE), 0.0)


def is_news(told: int | None, cost: int) -> bool:
    """Whether the cost is worth telling after what was told last, None where nobody knows what stands there."""
    if told is None or (told == 0) != (cost == 0):
        return True
    return abs(cost - told) >= max(LEAST_CHANGE, told // 2)
