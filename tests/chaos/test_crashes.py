"""SIGKILL at every failpoint, and at hundreds of instants: the long runs of `make test-chaos`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.crashes import crash_at, crash_at_random, knobs, two_workers
from tests.support.workshop import MODEL, Workshop, workshop
from worker.failpoints import POINTS

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """What the test prints is shown though it passes."""
    yield
    said = capsys.readouterr().out
    with capsys.disabled():
        print(f"\n{said}", end="")


def report(what: str, shop: Workshop, began: float, **more: object) -> None:
    took = asyncio.get_running_loop().time() - began
    figures = {"jobs": len(shop.wanted), "lives": shop.lives, "kills": shop.kills, **more}
    print(f"{what}: " + ", ".join(f"{value} {name}" for name, value in figures.items()) + f", {took:.0f} s")


@pytest.mark.usefixtures("say")
@pytest.mark.parametrize("point", POINTS)
async def test_killed_at_every_failpoint(point: str, tmp_path: Path) -> None:
    """Whatever was done before the kill, every job ends exactly once and its success is made once."""
    began = asyncio.get_running_loop().time()
    async with workshop(tmp_path) as shop:
        await crash_at(shop, point)
        ledger = await shop.ledger()
        assert ledger.breaches() == []
        report(f"killed at {point}", shop, began, strays=len(ledger.strays()))


@pytest.mark.usefixtures("say")
@pytest.mark.parametrize(("kills", "seed"), [(30, 30), (300, 300)])
async def test_killed_at_random(kills: int, seed: int, tmp_path: Path) -> None:
    """Kills at seeded instants, jobs always waiting, leave every promise kept."""
    began = asyncio.get_running_loop().time()
    async with workshop(tmp_path, knobs()) as shop:
        at_work = await crash_at_random(shop, random.Random(seed), kills)
        ledger = await shop.ledger()
        assert ledger.breaches() == []
        assert at_work > kills / 2, "hardly any kill hit a worker at work"
        report(
            f"killed at random, seed {seed}",
            shop,
            began,
            **{"kills at work": at_work},
            strays=len(ledger.strays()),
        )


@pytest.mark.usefixtures("say")
async def test_two_workers_one_of_them_killed(tmp_path: Path) -> None:
    """Sixty jobs on one file; one worker is killed again and again, the other goes on."""
    began = asyncio.get_running_loop().time()
    async with workshop(tmp_path, knobs(0.06), models=(MODEL, MODEL)) as shop:
        await two_workers(shop, random.Random(60), jobs=60)
        ledger = await shop.ledger()
        assert ledger.breaches() == []
        shares = {
            name: sum(one.result is not None and one.result.worker.id == name for one in ledger.states)
            for name in ("w1", "w2")
        }
        assert all(shares.values()), f"one of the workers did everything: {shares}"
        report("two workers", shop, began, **{f"jobs by {name}": share for name, share in shares.items()})
