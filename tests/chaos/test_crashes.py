"""SIGKILL at hundreds of instants, and in each attempt at every hop: the long runs of `make test-chaos`."""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from tests.chaos.conftest import Figures
from tests.support.crashes import crash_at_random, knobs, two_workers
from tests.support.ledger import Ledger
from tests.support.lines import Kind
from tests.support.matrix import ATTEMPTS, crash_matrix
from tests.support.workshop import MODEL, Workshop, workshop
from worker.failpoints import POINTS

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]


def line(what: str, shop: Workshop, ledger: Ledger, began: float, *more: str) -> str:
    counts = f"{len(shop.wanted)} jobs, {shop.lives} lives, {shop.kills} kills, {len(ledger.strays())} strays"
    return ", ".join((f"{what}: {counts}", *more, f"{time.monotonic() - began:.0f} s"))


@pytest.mark.parametrize(
    ("queue", "kills", "seed"),
    [
        ("sqlite", 300, 300),
        ("sqlite", 30, 30),
        ("availability", 60, 5),
        ("redis", 40, 6),
        ("sqs", 40, 7),
        ("salad", 40, 8),
    ],
)
async def test_killed_at_random(queue: Kind, kills: int, seed: int, tmp_path: Path, figures: Figures) -> None:
    """Kills at seeded instants, jobs always waiting, leave every promise kept, and hardly any job in dead hands."""
    began = time.monotonic()
    async with workshop(tmp_path, knobs(), queue=queue) as shop:
        at_work = await crash_at_random(shop, random.Random(seed), kills)
        ledger = await shop.ledger()
    assert ledger.breaches() == []
    assert at_work > kills / 2, "hardly any kill hit a worker at work"
    held = f"{statistics.mean(shop.held):.2f} jobs held at a death, {max(shop.held)} at most"
    figures(line(f"killed at random, {queue}, seed {seed}", shop, ledger, began, f"{at_work} kills at work", held))


@pytest.mark.parametrize("queue", get_args(Kind))
@pytest.mark.parametrize("point", POINTS)
async def test_matrix(point: str, queue: Kind, tmp_path: Path, figures: Figures) -> None:
    """A job killed there in its first attempt, one in its second and one in its third: each is reached, on each queue.

    Another worker does the rest. Nothing is lost, made twice or told twice, and no attempt is charged for a kill.
    """
    began = time.monotonic()
    async with workshop(tmp_path, queue=queue) as shop:
        breaches = await crash_matrix(shop, point)
        ledger = await shop.ledger()
    assert breaches == []
    figures(line(f"matrix, {point} x {queue} x {len(ATTEMPTS)} attempts", shop, ledger, began))


@pytest.mark.parametrize("queue", get_args(Kind))
async def test_two_workers_one_of_them_killed(queue: Kind, tmp_path: Path, figures: Figures) -> None:
    """Sixty jobs on one queue; one worker is killed again and again, the other goes on."""
    began = time.monotonic()
    async with workshop(tmp_path, knobs(0.06), models=(MODEL, MODEL), queue=queue) as shop:
        await two_workers(shop, random.Random(60), jobs=60)
        ledger = await shop.ledger()
    assert ledger.breaches() == []
    shares = Counter(state.attempts[-1].worker for state in ledger.states)
    assert set(shares) == {"w1", "w2"}
    figures(line(f"two workers, {queue}", shop, ledger, began, *(f"{n} by {name}" for name, n in shares.items())))
