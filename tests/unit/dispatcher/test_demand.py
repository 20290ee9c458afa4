"""What waits, as the dispatcher counts it between two readings of its database."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from dispatcher.demand import FEW, SMOOTHED_S, Demands
from dispatcher.steps import whole
from dispatcher.store.base import Backlog
from dispatcher.words import Need, Waiting


@dataclass
class Having:
    """Who has which model, as told."""

    having: Counter[str] = field(default_factory=Counter)

    def warm(self, key: str) -> int:
        return self.having[key]

    def copies(self, key: str) -> int:
        return 2 * self.having[key]

    def coming(self, key: str) -> int:
        return 0

    def size(self, key: str) -> int | None:
        return 5 if self.having[key] else None


class Time:
    """Seconds that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def job(key: str) -> Waiting:
    return Waiting("j", (Need(key, "checkpoint", key),), work_s=6.0)


def test_what_moves_here_counts_at_once() -> None:
    """Submissions add, grants take away, and what nobody waits for has no work left."""
    demands = Demands(Having(), Time())
    demands.came([("a", 6.0), ("a", 6.0), ("b", 1.0)])
    assert (demands.waiting, demands.index["a"].waiting, demands.index["a"].work_s) == (3, 2, 12.0)
    demands.gone(job("a"))
    demands.gone(job("a"))
    demands.gone(job("a"))
    assert (demands.waiting, demands.index["a"].waiting, demands.index["a"].work_s) == (1, 0, 0.0)
    demands.back("a", 6.0)
    assert demands.index["a"].waiting == 1


def test_a_reading_corrects_the_counts() -> None:
    """What was read counts, with what moved since the reading began; models that nobody waits for go."""
    demands = Demands(Having(), Time())
    demands.came([("a", 6.0), ("b", 6.0)])
    demands.reading()
    demands.came([("a", 6.0)])
    assert whole(demands.read([Backlog("a", 5, 30.0)])) == {"a"}
    assert (demands.index["a"].waiting, demands.index["a"].work_s) == (6, 36.0)
    assert demands.index["b"].waiting == 0
    assert demands.waiting == 6
    demands.reading()
    assert whole(demands.read([Backlog("a", 6, 36.0)])) == set()


def test_the_first_reading_is_no_wave_of_arrivals() -> None:
    """What waited already when the process began did not come just now; what is more later did."""
    demands = Demands(Having(), Time())
    demands.reading()
    whole(demands.read([Backlog("a", 3000, 1.0)]))
    assert demands.index["a"].arrivals == 0
    demands.reading()
    whole(demands.read([Backlog("a", 3300, 1.0)]))
    assert abs(demands.index["a"].arrivals - 300 / SMOOTHED_S) < 1e-9


def test_arrivals_are_forgotten_by_and_by() -> None:
    """The rate falls when nothing more comes, and at last the model is known no longer."""
    time = Time()
    demands = Demands(Having(), time)
    demands.came([("a", 6.0)] * 30)
    first = demands.index["a"].arrivals
    for _ in range(30):
        demands.gone(job("a"))
    time.now += SMOOTHED_S
    demands.reading()
    whole(demands.read([]))
    assert 0.3 * first < demands.index["a"].arrivals < 0.4 * first
    demands.came((f"k{i}", 1.0) for i in range(2 * FEW))
    for i in range(2 * FEW):
        demands.gone(job(f"k{i}"))
    time.now += 100 * SMOOTHED_S
    demands.reading()
    whole(demands.read([]))
    assert len(demands.index) == 0


def test_copies_that_come_and_go_move_the_demand() -> None:
    """Of models that jobs wait for; others are none of its business."""
    having = Having()
    demands = Demands(having, Time())
    demands.came([("a", 6.0)])
    having.having["a"] += 1
    demands.moved(["a", "z"])
    assert (demands.index["a"].warm, demands.index["a"].copies, demands.index["a"].size) == (1, 2, 5)
    assert "z" not in demands.index


def test_the_age_of_the_first_job_presses_more_and_more() -> None:
    """Known once its head was read, and renewed as it grows."""
    time = Time()
    demands = Demands(Having(), time)
    demands.came([("a", 6.0)])
    demands.first("a", time.now)
    demands.first("unknown", time.now)
    time.now += 60
    demands.reading()
    whole(demands.read([Backlog("a", 1, 6.0)]))
    assert demands.index["a"].age_s == 60
    demands.gone(job("a"))
    assert demands.index["a"].age_s == 0
