"""Models that take too long for who waits: said in time, fetched all the same, and kept for when he comes again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.support.cache import HOST, KB, Kept, content, kept, wanted
from tests.support.virtual import elapse, virtual
from worker.errors import DownloadFailed, ModelComing
from worker.models.base import InFlight, Priority, Wanted
from worker.models.cache import DELAY_MOST, GRACE

AT_MOST = timedelta(minutes=1)
LONG_S, SHORT_S = 100, 25
BLOCK_S = 0.25


def comes(cache: Kept, name: str, seconds: float, **more: object) -> Wanted:
    """A model that takes so long to come."""
    cache.hub.has(name, content(name, int(seconds / BLOCK_S) * KB), **{"seconds": BLOCK_S, **more})
    return wanted(f"{name}.safetensors", at=name)


@asynccontextmanager
async def roomy(root: Path, cap_s: float = 500) -> AsyncIterator[Kept]:
    """A cache for what takes so long to come."""
    async with kept(root / "m", cap=int(cap_s / BLOCK_S) * KB) as cache:
        yield cache


async def provided(cache: Kept, *wants: Wanted) -> float:
    """Take them and let go of them; how long that took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with cache.cache.provided(wants, AT_MOST):
        return loop.time() - began


async def put_off(cache: Kept, *wants: Wanted) -> float:
    """In how many seconds to come again."""
    with pytest.raises(ModelComing) as caught:
        await provided(cache, *wants)
    assert caught.value.retry_after is not None
    return caught.value.retry_after.total_seconds()


def transfer(cache: Kept, name: str) -> InFlight | None:
    return next((one for one in cache.cache.transfers() if one.place.name == f"{name}.safetensors"), None)


def pinned(cache: Kept) -> set[str]:
    return {place.name for place in cache.carrier.books.pinned}


@virtual
async def test_what_takes_too_long_goes_on_and_is_there_later(tmp_path: Path) -> None:
    """The time is told after a few seconds of measuring; prefetches stand still for it; then it is had at once."""
    async with roomy(tmp_path) as cache:
        want = comes(cache, "far", LONG_S)
        loop = asyncio.get_running_loop()
        delay_s = await put_off(cache, want)
        assert loop.time() <= 8
        assert abs(loop.time() + delay_s - LONG_S) <= 5
        coming = transfer(cache, "far")
        assert coming is not None
        assert coming.priority is Priority.START
        await elapse(delay_s / 2)
        stood_still = cache.hub.pauses[-1]
        await elapse(delay_s / 2)
        assert await provided(cache, want) < 5
        assert cache.hub.fetches.total() == 1
        assert (stood_still, cache.hub.pauses[-1]) == (True, False)
        await elapse(0.01)
        assert cache.idle


@virtual
async def test_what_comes_in_time_is_waited_for(tmp_path: Path) -> None:
    """However many files it is, and where nobody set a limit for as long as it takes."""
    async with roomy(tmp_path) as cache:
        wants = [comes(cache, name, SHORT_S) for name in "ab"]
        assert await provided(cache, *wants) >= SHORT_S
        async with cache.cache.provided([comes(cache, "far", LONG_S)]):
            assert "far.safetensors" in cache.names


@virtual
async def test_the_longest_of_a_set_counts(tmp_path: Path) -> None:
    """A set comes when the last of it does."""
    async with roomy(tmp_path) as cache:
        delay_s = await put_off(cache, comes(cache, "near", SHORT_S), comes(cache, "far", LONG_S))
        assert abs(delay_s - LONG_S) < 12


@virtual
async def test_nobody_is_sent_away_for_longer_than_a_quarter_of_an_hour(tmp_path: Path) -> None:
    """Whatever is measured."""
    async with roomy(tmp_path, cap_s=2000) as cache:
        assert await put_off(cache, comes(cache, "far", 1000)) == DELAY_MOST.total_seconds()


@virtual
async def test_a_size_that_nobody_knows_is_waited_for(tmp_path: Path) -> None:
    """There is nothing to reckon with."""
    async with roomy(tmp_path) as cache:
        assert await provided(cache, comes(cache, "far", LONG_S, tells=frozenset())) >= LONG_S


@virtual
async def test_until_it_is_measured_the_speed_of_the_node_counts(tmp_path: Path) -> None:
    """A source that is slow to begin is judged by what came before from others."""
    async with roomy(tmp_path) as cache:
        await provided(cache, comes(cache, "before", SHORT_S))
        stalled = comes(cache, "stalled", SHORT_S, go=asyncio.Event())
        waits = asyncio.create_task(provided(cache, stalled))
        await elapse(20)
        assert not waits.done()
        waits.cancel()
        await asyncio.wait({waits})
        await cache.carrier.flights.aclose()
        assert abs(await put_off(cache, comes(cache, "far", LONG_S, go=asyncio.Event())) - LONG_S) <= 10


@virtual
async def test_it_stays_until_somebody_comes_for_it(tmp_path: Path) -> None:
    """One who needs its room waits for that; then nothing holds it any more."""
    async with roomy(tmp_path, cap_s=120) as cache:
        want, other = comes(cache, "far", LONG_S), comes(cache, "other", 50)
        delay_s = await put_off(cache, want)
        waits = asyncio.create_task(provided(cache, other))
        await elapse(delay_s + 5)
        assert cache.names == ["far.safetensors"]
        assert pinned(cache) == {"far.safetensors"}
        assert not waits.done()
        async with cache.cache.provided([want], AT_MOST):
            await elapse(1)
            assert not waits.done()
        await waits
        assert cache.names == ["other.safetensors"]
        assert cache.idle


@virtual
async def test_it_is_not_kept_for_ever(tmp_path: Path) -> None:
    """Who does not come in time was served elsewhere."""
    async with roomy(tmp_path) as cache:
        delay_s = await put_off(cache, comes(cache, "far", LONG_S))
        await elapse(delay_s + GRACE.total_seconds() - 1)
        assert pinned(cache) == {"far.safetensors"}
        await elapse(2)
        assert cache.idle


@virtual
async def test_each_of_two_who_were_sent_away_is_expected(tmp_path: Path) -> None:
    """Who comes ends his own expectation, not the other's, also when both come at once."""
    async with roomy(tmp_path) as cache:
        want = comes(cache, "far", LONG_S)
        delays = await asyncio.gather(*(put_off(cache, want) for _ in range(3)))
        await elapse(max(delays) + 5)
        await provided(cache, want)
        await elapse(0.01)
        assert pinned(cache) == {"far.safetensors"}
        await asyncio.gather(provided(cache, want), provided(cache, want))
        await elapse(0.01)
        assert cache.idle
        assert (cache.tally.hits, cache.tally.misses) == (3, 3)


@virtual
async def test_who_comes_too_early_waits_or_is_sent_away_again(tmp_path: Path) -> None:
    """By what is left then."""
    async with roomy(tmp_path) as cache:
        want = comes(cache, "far", 2 * LONG_S)
        first_s = await put_off(cache, want)
        await elapse(50)
        second_s = await put_off(cache, want)
        assert abs(first_s - second_s - 56) < 12
        await elapse(second_s - 40)
        assert 20 < await provided(cache, want) < 60
        assert cache.hub.fetches.total() == 1


@virtual
async def test_nothing_long_is_begun_beside_what_others_wait_for(tmp_path: Path) -> None:
    """It would only make those later. Who wants it is sent away and evicts nothing; what is short comes meanwhile."""
    async with roomy(tmp_path) as cache:
        first, second = comes(cache, "first", LONG_S), comes(cache, "second", LONG_S)
        await put_off(cache, first)
        with capture_logs() as logs:
            assert await put_off(cache, second) > 1.5 * LONG_S
        assert [line["begun"] for line in logs if line["event"] == "model_put_off"] == [False]
        assert transfer(cache, "second") is None
        assert cache.hub.fetches[HOST + "second"] == 0
        await provided(cache, comes(cache, "short", 10))
        assert transfer(cache, "first") is not None
        await elapse(LONG_S)
        await put_off(cache, second)
        assert cache.hub.fetches[HOST + "second"] == 1


@virtual
async def test_who_was_held_back_begins_as_soon_as_he_may(tmp_path: Path) -> None:
    """When the other transfer ends before he is sent away."""
    async with roomy(tmp_path) as cache:
        first = asyncio.create_task(provided(cache, comes(cache, "first", 50)))
        await elapse(48)
        assert await provided(cache, comes(cache, "second", 55)) >= 55
        await first
        assert cache.hub.fetches.total() == 2


@virtual
async def test_what_an_earlier_try_left_makes_it_shorter(tmp_path: Path) -> None:
    """Only what is missing counts, and what is there already tells nothing of how fast the node fetches."""
    async with roomy(tmp_path) as cache:
        want = comes(cache, "far", LONG_S)
        flight = asyncio.create_task(provided(cache, want))
        await elapse(5)
        flight.cancel()
        await asyncio.wait({flight})
        await elapse(75)
        await cache.carrier.flights.aclose()
        first = asyncio.create_task(provided(cache, comes(cache, "first", SHORT_S)))
        await elapse(1)
        assert await provided(cache, want) < SHORT_S
        assert cache.hub.resumed[-1] > 75 / BLOCK_S * KB
        rate = cache.carrier.speed.rate(asyncio.get_running_loop().time())
        assert rate is not None
        assert rate <= 2 * KB / BLOCK_S
        await first


@virtual
async def test_a_transfer_that_fails_is_met_again_by_who_comes(tmp_path: Path) -> None:
    """Nobody else hears of it, and nothing is held."""
    async with roomy(tmp_path) as cache:
        want = comes(cache, "far", LONG_S)
        await put_off(cache, want)
        cache.hub.sources[HOST + "far"].error = DownloadFailed("away")
        await elapse(5)
        assert cache.idle
        with pytest.raises(DownloadFailed):
            await provided(cache, want)


@virtual
async def test_a_drain_expects_nobody(tmp_path: Path) -> None:
    """What was put off is begun again by another run, and nobody is expected from then on."""
    async with roomy(tmp_path) as cache:
        await put_off(cache, comes(cache, "far", LONG_S))
        coming = asyncio.create_task(put_off(cache, comes(cache, "other", LONG_S)))
        cache.cache.drain()
        await elapse(5)
        assert cache.hub.fetches[HOST + "far"] == 1
        assert transfer(cache, "other") is not None or coming.done()
        await coming
        await elapse(5)
        assert cache.idle
