"""What would be lost if the node went away now."""

from __future__ import annotations

import pytest

from worker.live import Hop, LiveJob, Span
from worker.stake import COST_MOST, cost_of, is_news, seconds_at_stake

NOW = 1000.0


def job(hop: Hop, *, since: float = NOW, spans: tuple[Span, ...] = (), made: object = None) -> LiveJob:
    return LiveJob("a", lambda: None, since=0, hop_since=since, hop=hop, spans=list(spans), made=made)


GENERATED = (Span(Hop.GENERATE, 100, 110), Span(Hop.GENERATE, 200, 230), Span(Hop.IMAGES, 230, 231))


@pytest.mark.parametrize(
    ("held", "seconds"),
    [
        (job(Hop.RECEIVED), 0),
        (job(Hop.MODELS, since=0), 0),
        (job(Hop.WAITING, since=0), 0),
        (job(Hop.GENERATE, since=NOW - 12.5), 12.5),
        (job(Hop.GENERATE, since=NOW + 1), 0),
        (job(Hop.IMAGES, spans=GENERATED), 30),
        (job(Hop.WAITING, spans=GENERATED), 0),
        (job(Hop.UPLOAD, spans=GENERATED, made="images"), 30),
        (job(Hop.SETTLE, spans=GENERATED, made="images"), 30),
        (job(Hop.SETTLE, spans=GENERATED), 0),
        (job(Hop.SETTLE, made="images"), 0),
    ],
)
def test_the_running_generation_counts_or_the_one_whose_images_are_not_safe(held: LiveJob, seconds: float) -> None:
    """A doubtful answer's seconds are lost already, and a failed job holds nothing of worth."""
    assert seconds_at_stake(held, NOW) == seconds


def test_the_cost_is_zero_when_idle_and_rises_with_what_is_at_stake() -> None:
    """A job alone is worth something; many days of work are worth no more than the platform takes."""
    running = job(Hop.GENERATE, since=NOW - 20)
    assert [cost_of(jobs, NOW) for jobs in ((), [job(Hop.ADMIT)], [running], [running, running])] == [0, 1, 21, 41]
    assert cost_of([job(Hop.GENERATE, since=-1e9)], NOW) == COST_MOST == 100_000


@pytest.mark.parametrize(
    ("told", "cost", "news"),
    [
        (None, 0, True),
        (0, 0, False),
        (0, 1, True),
        (1, 0, True),
        (100_000, 0, True),
        (1, 5, False),
        (1, 6, True),
        (6, 1, True),
        (100, 149, False),
        (100, 150, True),
        (100, 50, True),
        (100, 51, False),
    ],
)
def test_what_changes_little_is_not_told(told: int | None, cost: int, news: bool) -> None:
    """Between idle and busy every change is; from unknown, anything is."""
    assert is_news(told, cost) is news
