"""Several who want models at once: one transfer for all, served in order, and nobody holds what he waits with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.support.cache import HOST, KB, FakeHub, Kept, content, kept, sha256, wanted
from tests.support.virtual import elapse, virtual
from worker.errors import DownloadFailed, Draining, ModelCorrupt, Owner, WorkerError
from worker.mentions import place_of
from worker.models.base import Priority, Wanted


def has(cache: Kept, name: str, blocks: int, **more: object) -> Wanted:
    """A model of so many blocks that is to be had, held up in its transfer."""
    go = asyncio.Event()
    cache.hub.has(name, content(name, blocks * KB), go=go, **more)
    return wanted(f"{name}.safetensors", at=name)


def let(cache: Kept, name: str) -> None:
    """Let the transfer of this one go on."""
    go = cache.hub.sources[HOST + name].go
    assert go is not None
    go.set()


async def there(cache: Kept, name: str, blocks: int) -> Wanted:
    """A model that is on disk already."""
    want = has(cache, name, blocks)
    let(cache, name)
    await cache.cache.fetch(want)
    return want


class Job:
    """Somebody who takes a set and holds it until `done`."""

    def __init__(self, cache: Kept, *wants: Wanted) -> None:
        self.cache = cache
        self.served = asyncio.Event()
        self.done = asyncio.Event()
        self.task = asyncio.create_task(self.run(wants))

    async def run(self, wants: Sequence[Wanted]) -> list[str]:
        async with self.cache.cache.provided(wants) as provided:
            self.served.set()
            await self.done.wait()
            return [place.name for place in provided.places]

    async def ends(self) -> list[str]:
        self.done.set()
        return await self.task

    async def leaves(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})


@asynccontextmanager
async def jobs(cache: Kept, *sets: Sequence[Wanted]) -> AsyncIterator[list[Job]]:
    """One after the other, each as far as it comes at once."""
    found = []
    for wants in sets:
        found.append(Job(cache, *wants))
        await elapse(1)
    try:
        yield found
    finally:
        for job in found:
            await job.leaves()


@virtual
async def test_two_jobs_share_a_transfer(tmp_path: Path) -> None:
    """A file comes once, and who gives up stops it for nobody else."""
    async with kept(tmp_path / "m") as cache:
        want = has(cache, "a", 2)
        async with jobs(cache, [want], [want], [want]) as (first, second, third):
            assert [one.priority for one in cache.cache.transfers()] == [Priority.JOB]
            await first.leaves()
            let(cache, "a")
            assert await second.ends() == await third.ends() == ["a.safetensors"]
        assert cache.hub.fetches.total() == 1
        assert cache.idle


@virtual
async def test_a_failure_reaches_all(tmp_path: Path) -> None:
    """All who wait for a transfer hear of its failure, and the next who asks tries anew from where it broke off."""
    async with kept(tmp_path / "m") as cache:
        want = has(cache, "a", 3)
        source = cache.hub.sources[HOST + "a"]
        async with jobs(cache, [want], [want]) as (first, second):
            source.error = DownloadFailed("the host is away")
            let(cache, "a")
            errors = await asyncio.gather(first.task, second.task, return_exceptions=True)
            assert [str(error) for error in errors] == ["the host is away"] * 2
            assert errors[0] is not errors[1]
        source.error = None
        await cache.cache.fetch(want)
        assert cache.hub.resumed == [0, KB]
        assert cache.idle


@virtual
async def test_another_origin_is_tried_on_its_own(tmp_path: Path) -> None:
    """Who joined the transfer of the same bytes from elsewhere does not fail with it."""
    async with kept(tmp_path / "m") as cache:
        data = content("a", KB)
        ours = wanted("a.safetensors", at="good", sha256=sha256(data), owner=Owner.OPERATOR)
        cache.hub.has("good", data)
        cache.hub.has("bad", data, go=asyncio.Event(), error=DownloadFailed("refused"))
        bad = wanted("a.safetensors", at="bad", sha256=sha256(data))
        async with jobs(cache, [bad]) as (theirs,):
            fetching = asyncio.create_task(cache.cache.fetch(ours))
            await elapse(1)
            assert cache.hub.fetches.total() == 1
            let(cache, "bad")
            with pytest.raises(DownloadFailed):
                await theirs.task
            assert (await fetching).place == ours.place
        assert cache.hub.fetches[HOST + "good"] == 1


@virtual
async def test_an_abandoned_transfer_goes_on(tmp_path: Path) -> None:
    """When the last job that waited has gone, its model still comes, as one that nobody waits for."""
    async with kept(tmp_path / "m") as cache:
        want = has(cache, "a", 2)
        async with jobs(cache, [want]) as (job,):
            await job.leaves()
            assert [one.priority for one in cache.cache.transfers()] == [Priority.BACKGROUND]
            let(cache, "a")
            await elapse(1)
        assert cache.names == ["a.safetensors"]
        assert cache.hub.pauses == [True, False]


@virtual
async def test_a_drain_ends_what_nobody_waits_for(tmp_path: Path) -> None:
    """From a drain on hints are not taken, idle transfers end, and what they brought stays for the next run.

    A transfer under way tells whence it comes.
    """
    hub = FakeHub()
    async with kept(tmp_path / "m", hub=hub) as cache:
        hinted, awaited = has(cache, "a", 3), has(cache, "b", 3)
        cache.cache.hint(hinted)
        async with jobs(cache, [awaited]) as (job,):
            cache.cache.drain()
            cache.cache.hint(has(cache, "c", 1))
            await elapse(1)
            assert [(t.place.name, t.done) for t in cache.cache.transfers()] == [
                ("b.safetensors", KB),
                ("a.safetensors", KB),
            ]
            assert [t.source for t in cache.cache.transfers()] == ["models.example", ""]
            assert cache.cache.hinting == 0
            await job.leaves()
            await elapse(1)
        assert cache.cache.bytes == cache.written() == 2 * KB
    async with kept(tmp_path / "m", hub=hub) as cache:
        assert {t.place.name: t.done for t in cache.cache.transfers()} == {"a.safetensors": KB, "b.safetensors": KB}
        let(cache, "a")
        await cache.cache.fetch(hinted)
        assert hub.resumed == [0, 0, KB]


@virtual
async def test_closing_ends_who_waits(tmp_path: Path) -> None:
    """A cache that is closed tells those who wait for a transfer that the worker drains."""
    async with kept(tmp_path / "m") as cache:
        job = Job(cache, has(cache, "a", 2))
        await elapse(1)
    with pytest.raises(Draining):
        await job.task


@virtual
async def test_a_job_hastens_a_prefetch(tmp_path: Path) -> None:
    """A prefetch that a job comes to wait for has the job's priority, and the others stand still for it."""
    async with kept(tmp_path / "m") as cache:
        first, second = has(cache, "a", 2), has(cache, "b", 2)
        cache.cache.hint(first)
        cache.cache.hint(first)
        cache.cache.hint(second)
        await elapse(1)
        assert cache.cache.hinting == 2
        priority = cache.hub.priorities[HOST + "a"]
        assert priority() is Priority.BACKGROUND
        async with jobs(cache, [first]) as (job,):
            assert priority() is Priority.JOB
            assert cache.hub.priorities[HOST + "b"]() is Priority.BACKGROUND
            assert cache.hub.pauses == [True]
            let(cache, "a")
            assert await job.ends() == ["a.safetensors"]
            assert cache.hub.pauses == [True, False]
            assert cache.hub.fetches.total() == 2


@virtual
async def test_a_hint_that_fails_is_logged(tmp_path: Path) -> None:
    """Nobody waits for it, so the log alone tells."""
    async with kept(tmp_path / "m") as cache:
        with capture_logs() as logs:
            cache.cache.hint(wanted("a.safetensors"))
            await elapse(1)
        refused = [line for line in logs if line["event"] == "model_refused"]
        assert [(line["code"], line["models"]) for line in refused] == [("model_not_found", ["lora/a.safetensors"])]
        assert cache.cache.hinting == 0


@virtual
async def test_a_job_takes_the_room_of_prefetches(tmp_path: Path) -> None:
    """A transfer that nobody waits for gives way to a job's, and comes again when there is room."""
    async with kept(tmp_path / "m") as cache:
        hint, want = has(cache, "a", 6), has(cache, "b", 6)
        cache.cache.hint(hint)
        await elapse(1)
        async with jobs(cache, [want]) as (job,):
            assert [t.place.name for t in cache.cache.transfers()] == ["b.safetensors"]
            assert cache.written() == KB
            let(cache, "b")
            assert await job.ends() == ["b.safetensors"]
            let(cache, "a")
            await elapse(1)
        assert cache.names == ["a.safetensors"]
        assert cache.hub.fetches[HOST + "a"] == 2


@virtual
async def test_who_waits_holds_nothing(tmp_path: Path) -> None:
    """A job that waits for room pins nothing of its set, so that two can never hold half of each other's."""
    async with kept(tmp_path / "m") as cache:
        a, b = await there(cache, "a", 5), await there(cache, "b", 5)
        c = has(cache, "c", 5)
        let(cache, "c")
        async with jobs(cache, [a, b], [a, c]) as (first, second):
            assert first.served.is_set()
            assert not second.served.is_set()
            assert cache.carrier.books.waiting == 1
            assert await first.ends() == ["a.safetensors", "b.safetensors"]
            assert await second.ends() == ["a.safetensors", "c.safetensors"]
        assert cache.names == ["a.safetensors", "c.safetensors"]
        assert cache.tally.waited_s > 0


@virtual
async def test_waiters_are_served_in_order(tmp_path: Path) -> None:
    """A later job that would fit does not take the room that an earlier one waits for; one that needs none may pass."""
    async with kept(tmp_path / "m") as cache:
        a, b = await there(cache, "a", 5), await there(cache, "b", 3)
        big, small = has(cache, "big", 6), has(cache, "small", 2)
        let(cache, "big")
        let(cache, "small")
        async with jobs(cache, [a], [big], [small], [b]) as (first, second, third, fourth):
            assert not second.served.is_set()
            assert not third.served.is_set()
            assert fourth.served.is_set()
            await fourth.ends()
            await first.ends()
            await second.served.wait()
            await second.ends()
            await third.ends()
        landed = [name for name in cache.names if name in ("big.safetensors", "small.safetensors")]
        assert landed == ["big.safetensors", "small.safetensors"]


@virtual
async def test_nobody_pins_what_an_earlier_one_waits_for(tmp_path: Path) -> None:
    """A popular model cannot starve a job that waits for its room: later users of it wait behind."""
    async with kept(tmp_path / "m") as cache:
        popular, big = await there(cache, "popular", 6), has(cache, "big", 6)
        let(cache, "big")
        async with jobs(cache, [popular], [big], [popular]) as (first, second, third):
            assert not third.served.is_set()
            await first.ends()
            await second.served.wait()
            assert not third.served.is_set()
            await second.ends()
            await third.ends()


@virtual
async def test_a_waiter_that_leaves_is_out_of_the_line(tmp_path: Path) -> None:
    """When the first in line gives up, the next one goes on at once."""
    async with kept(tmp_path / "m") as cache:
        a, big, small = await there(cache, "a", 5), has(cache, "big", 6), has(cache, "small", 2)
        let(cache, "small")
        async with jobs(cache, [a], [big], [small]) as (_, second, third):
            await second.leaves()
            await third.served.wait()
            assert cache.hub.fetches[HOST + "big"] == 0


@virtual
async def test_a_transfer_that_cannot_grow_gives_way(tmp_path: Path) -> None:
    """One of unknown size that would have to wait gives its room back; the job asks anew with what it knows."""
    async with kept(tmp_path / "m") as cache:
        a = await there(cache, "a", 6)
        unknown = has(cache, "unknown", 5, tells=frozenset())
        let(cache, "unknown")
        async with jobs(cache, [a], [unknown]) as (first, second):
            assert not second.served.is_set()
            assert cache.carrier.books.waiting == 1
            assert not cache.carrier.books.flights
            assert cache.written() <= 10 * KB
            await first.ends()
            assert await second.ends() == ["unknown.safetensors"]
        assert cache.path("unknown.safetensors").stat().st_size == 5 * KB
        assert cache.hub.resumed == [0, 0, 4 * KB]


@virtual
async def test_unknown_sizes_may_turn_out_too_large(tmp_path: Path) -> None:
    """A transfer that outgrows the whole cache ends the job; what was there before stays as far as it can."""
    async with kept(tmp_path / "m") as cache:
        want = has(cache, "unknown", 11, tells=frozenset())
        let(cache, "unknown")
        with pytest.raises(WorkerError) as refused:
            await cache.cache.fetch(want)
        assert refused.value.code == "model_too_large"
        assert cache.idle


@virtual
async def test_a_set_with_a_file_of_unknown_size_is_too_large(tmp_path: Path) -> None:
    """What a transfer needs more than its own set leaves is no reason to wait for ever."""
    async with kept(tmp_path / "m") as cache:
        a, unknown = await there(cache, "a", 6), has(cache, "unknown", 5, tells=frozenset())
        let(cache, "unknown")
        async with jobs(cache, [a, unknown]) as (job,):
            with pytest.raises(WorkerError) as refused:
                await job.task
        assert refused.value.code == "model_too_large"
        assert place_of("lora", "a.safetensors") in cache.disk.entries
        assert cache.idle


@virtual
async def test_bytes_with_another_hash_are_never_stored(tmp_path: Path) -> None:
    """Whatever a transfer brings, a wanted hash is compared before the file gets its name."""
    async with kept(tmp_path / "m") as cache:
        cache.hub.has("a", content("a", KB))
        with pytest.raises(ModelCorrupt):
            await cache.cache.fetch(wanted("a.safetensors", at="a", sha256="0" * 64))
        assert cache.names == []
        assert cache.idle
