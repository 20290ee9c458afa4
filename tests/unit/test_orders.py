"""Orders of a queue: each carried out once, beside the jobs, never against them, and not in a drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.support.cache import HOST, KB, Kept, content, kept, sha256, wanted
from tests.support.made import safetensors
from tests.support.virtual import elapse, virtual
from worker.drain import Drain
from worker.errors import DiskFull, DownloadFailed, InvalidJob, Owner
from worker.live import Live
from worker.lookahead import Pace
from worker.mentions import Place
from worker.metrics import ORDERS, Metrics
from worker.models.base import Entry, Priority, Wanted
from worker.models.none import NoCache
from worker.node import Orders
from worker.orders import AT_ONCE, HELD_MOST, REST, Duties, is_here, wanted_of
from worker.wire import Download, Evict

INK = Place("lora", "ink.safetensors")


@dataclass
class Duty:
    """Orders over a real cache."""

    cache: Kept
    duties: Duties
    live: Live
    drain: Drain
    metrics: Metrics

    def obey(self, *orders: Download | Evict, cancel: tuple[str, ...] = ()) -> None:
        self.duties.obey(
            Orders(
                tuple(order for order in orders if isinstance(order, Download)),
                tuple(order for order in orders if isinstance(order, Evict)),
                cancel,
            )
        )

    async def done(self) -> None:
        """Let virtual time pass until nothing is under way."""
        while self.duties.under_way:
            await elapse(0.1)

    def count(self, order: str, outcome: str) -> float:
        return self.metrics.value(ORDERS, order=order, outcome=outcome)


@asynccontextmanager
async def duty(root: Path, *, cap: int = 10 * KB) -> AsyncIterator[Duty]:
    async with kept(root / "m", cap=cap) as cache:
        live, metrics = Live(), Metrics()
        drain = Drain(live, Pace())
        duties = Duties(cache.cache, live, drain, metrics, cache.cache.typed)
        try:
            yield Duty(cache, duties, live, drain, metrics)
        finally:
            await duties.aclose()


def offered(cache: Kept, name: str = "ink", blocks: int = 1, **more: object) -> Download:
    """A file on the host, and the order to fetch it."""
    cache.hub.has(f"{name}.safetensors", content(name, blocks * KB), owner=Owner.OPERATOR, **more)
    return Download(url=f"{HOST}{name}.safetensors", kind="lora")


@virtual
async def test_an_order_fetches_a_model_once_however_often_it_is_repeated(tmp_path: Path) -> None:
    """As the operator's, in the background; while it comes, and once it is here, the same order is nothing new."""
    async with duty(tmp_path) as one:
        order = offered(one.cache, seconds=1.0)
        one.obey(order, order)
        await elapse(0.5)
        one.obey(order)
        assert one.cache.hub.priorities[order.url or ""]() is Priority.BACKGROUND
        await one.done()
        for _ in range(3):
            one.obey(order)
        assert one.duties.under_way == 0
        assert one.cache.names == ["ink.safetensors"]
        assert one.cache.hub.fetches.total() == 1
        assert one.count("download", "done") == 1


@virtual
async def test_what_is_here_is_not_used_by_an_order_for_it(tmp_path: Path) -> None:
    """An order that is repeated for hours must not keep its model from being the one that goes."""
    async with duty(tmp_path) as one:
        orders = [offered(one.cache, name) for name in "ab"]
        for order in orders:
            one.obey(order)
            await one.done()
        one.obey(orders[0], Download(name="a.safetensors", kind="lora"))
        assert one.duties.under_way == 0
        assert one.cache.names == ["a.safetensors", "b.safetensors"]


@virtual
async def test_an_order_that_came_under_another_name_is_known_again(tmp_path: Path) -> None:
    """Its bytes were here already: one file, and the order is met for as long as that is there."""
    async with duty(tmp_path) as one:
        first, second = (
            offered(one.cache),
            Download(url=HOST + "twin.safetensors", kind="lora", name="twin.safetensors"),
        )
        one.cache.hub.has("twin.safetensors", content("ink", KB))
        for order in (first, second, second):
            one.obey(order)
            await one.done()
        assert one.cache.names == ["ink.safetensors"]
        assert one.cache.hub.fetches.total() == 2
        await one.cache.cache.remove(INK)
        one.obey(second)
        await one.done()
        assert one.cache.names == ["twin.safetensors"]


@virtual
async def test_an_order_that_failed_rests(tmp_path: Path) -> None:
    """It is said once, and minutes pass before it is tried again, though the server repeats it all the time."""
    async with duty(tmp_path) as one:
        order = offered(one.cache)
        source = one.cache.hub.sources[order.url or ""]
        source.error = DownloadFailed("models.example: no answer in time")
        with capture_logs() as logs:
            for _ in range(10):
                one.obey(order)
                await elapse(REST.total_seconds() / 12)
        assert [line["code"] for line in logs if line["event"] == "order_failed"] == ["download_failed"]
        assert one.cache.hub.fetches.total() == 1
        source.error = None
        await elapse(REST.total_seconds())
        one.obey(order)
        await one.done()
        assert one.cache.names == ["ink.safetensors"]
        assert (one.count("download", "download_failed"), one.count("download", "done")) == (1, 1)


@virtual
async def test_a_source_that_asks_for_more_time_gets_it(tmp_path: Path) -> None:
    """An hour, when it says so."""
    async with duty(tmp_path) as one:
        order = offered(one.cache)
        busy = DownloadFailed("busy", retry_after=timedelta(hours=1))
        one.cache.hub.sources[order.url or ""].error = busy
        one.obey(order)
        await one.done()
        await elapse(3000)
        one.obey(order)
        assert one.duties.under_way == 0
        await elapse(700)
        one.obey(order)
        assert one.duties.under_way == 1


@virtual
async def test_an_order_that_nobody_could_carry_out_is_refused(tmp_path: Path) -> None:
    """Nothing is begun, and it rests like one that failed."""
    async with duty(tmp_path) as one:
        bad = Download(kind="lora", name="../../etc/passwd")
        with capture_logs() as logs:
            one.obey(bad)
            one.obey(bad)
        assert one.duties.under_way == 0
        assert [line["code"] for line in logs] == ["invalid_job"]
        for number in range(HELD_MOST):
            one.obey(Download(kind="lora", name=f"../{number}"))
        with capture_logs() as logs:
            one.obey(bad)
        assert len(logs) == 1, "so many later ones have failed that this one is forgotten"


@virtual
async def test_a_file_larger_than_the_cap_is_never_begun(tmp_path: Path) -> None:
    """The cap holds for orders as for jobs."""
    async with duty(tmp_path, cap=2 * KB) as one:
        one.obey(offered(one.cache, "huge", 3))
        await one.done()
        assert one.cache.written() == 0
        assert one.count("download", "model_too_large") == 1


@virtual
async def test_few_files_come_together_and_not_all_that_is_ordered_is_kept(tmp_path: Path) -> None:
    """A server that orders a thousand models has a few begun, and orders the rest again some day."""
    async with duty(tmp_path, cap=20 * KB) as one:
        orders = [offered(one.cache, f"m{i}", seconds=1.0) for i in range(HELD_MOST + 5)]
        one.obey(*orders)
        assert one.duties.under_way == HELD_MOST
        await elapse(0.5)
        assert one.cache.hub.fetches.total() == AT_ONCE


@virtual
async def test_evict_drops_a_model_that_nobody_uses(tmp_path: Path) -> None:
    """And nothing where there is none of that name."""
    async with duty(tmp_path) as one:
        one.obey(offered(one.cache), offered(one.cache, "other"))
        await one.done()
        gone = Evict(kind="loras", name="ink.safetensors")
        one.obey(gone, gone, Evict(kind="lora", name="never.safetensors"))
        await one.done()
        assert one.cache.names == ["other.safetensors"]
        assert one.count("evict", "done") == 1


@virtual
async def test_evict_leaves_what_is_used(tmp_path: Path) -> None:
    """A job's pin and the server's memory count more than an order, which may come again any time."""
    async with duty(tmp_path) as one:
        one.obey(offered(one.cache), offered(one.cache, "held"))
        await one.done()
        one.cache.server.held.add(Place("lora", "held.safetensors"))
        evicts = (Evict(kind="lora", name="ink.safetensors"), Evict(kind="lora", name="held.safetensors"))
        async with one.cache.cache.provided([wanted("ink.safetensors")]):
            one.obey(*evicts)
            await one.done()
            assert sorted(one.cache.names) == ["held.safetensors", "ink.safetensors"]
            assert one.count("evict", "model_in_use") == 2
        one.obey(*evicts)
        await one.done()
        assert one.cache.names == ["held.safetensors"]


@virtual
async def test_what_came_with_the_image_is_never_evicted_by_order(tmp_path: Path) -> None:
    """Deleting it would free nothing, and no download brings it back for free."""
    async with duty(tmp_path) as one:
        path = one.cache.path("baked.safetensors")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(safetensors(content("baked", KB)))
        await one.cache.cache.tidy(older_than=timedelta(0))
        [entry] = one.cache.cache.entries()
        one.cache.disk.entries[entry.place] = replace(entry, baked=True)
        one.obey(Evict(kind="lora", name="baked.safetensors"))
        assert one.duties.under_way == 0
        assert path.exists()


@virtual
async def test_a_file_that_cannot_be_deleted_is_left_alone_for_a_while(tmp_path: Path) -> None:
    """It is said once; the server repeats its order for as long as it sees the file in reports."""
    async with duty(tmp_path) as one:
        one.obey(offered(one.cache))
        await one.done()
        one.cache.cache.remove = refused  # type: ignore[method-assign]
        evict = Evict(kind="lora", name="ink.safetensors")
        with capture_logs() as logs:
            for _ in range(3):
                one.obey(evict)
                await one.done()
        assert [line["code"] for line in logs] == ["disk_full"]


async def refused(place: Place) -> None:
    raise DiskFull(f"{place} cannot be deleted")


@virtual
async def test_cancel_reaches_the_job(tmp_path: Path) -> None:
    """Of one that is not held nothing is said: its end and the order crossed each other."""
    async with duty(tmp_path) as one:
        with one.live.holding("a") as job:
            guard = asyncio.create_task(job.cancelled(), name="guard")
            one.obey(cancel=("a", "b"))
            await asyncio.wait({guard})
            assert type(guard.exception()).__name__ == "JobCancelled"
        assert one.count("cancel", "done") == 1


@virtual
async def test_nothing_is_begun_in_a_drain_but_jobs_are_cancelled(tmp_path: Path) -> None:
    """What was under way ends when it is told to stop, and what it brought can be resumed."""
    async with duty(tmp_path) as one:
        order = offered(one.cache, blocks=3, seconds=1.0)
        one.obey(order)
        await elapse(1.5)
        one.drain.begin(asyncio.get_running_loop().time() + 10)
        one.duties.stop()
        one.cache.cache.drain()
        await one.done()
        one.obey(order, offered(one.cache, "more"), Evict(kind="lora", name="ink.safetensors"), cancel=("a",))
        assert one.duties.under_way == 0
        assert one.cache.names == []
        await elapse(5)
        assert [one.done for one in one.cache.cache.transfers()] == [2 * KB]


@virtual
async def test_without_a_folder_of_models_an_order_is_refused() -> None:
    """Said once, like any other failure."""
    live, metrics = Live(), Metrics()
    duties = Duties(NoCache(), live, Drain(live, Pace()), metrics)
    order = Download(url=HOST + "ink.safetensors", kind="lora")
    with capture_logs() as logs:
        for _ in range(3):
            duties.obey(Orders((order,), (Evict(kind="lora", name="ink.safetensors"),)))
            await elapse(1)
    assert [line["code"] for line in logs] == ["model_not_found"]


@virtual
async def test_a_bug_in_the_cache_is_counted_and_rests(tmp_path: Path) -> None:
    """It ends no worker, and is not run into again and again."""
    async with duty(tmp_path) as one:
        order = offered(one.cache)

        def broken() -> None:
            raise KeyError("bug")

        one.cache.hub.on_write = broken
        with capture_logs() as logs:
            for _ in range(3):
                one.obey(order)
                await one.done()
        assert [line["event"] for line in logs].count("internal_error") == 1
        assert one.metrics.value("sd_worker_bugs_total") == 1


@pytest.mark.parametrize(
    ("order", "found"),
    [
        (
            Download(url=HOST + "deep/ink.safetensors?type=Model", kind="lora"),
            Wanted("lora", "ink.safetensors", HOST + "deep/ink.safetensors?type=Model"),
        ),
        (Download(url="https://civitai.com/api/download/models/132760", kind="checkpoint"), ("checkpoint", "")),
        (Download(url=HOST + "loras/ink.safetensors"), ("lora", "ink.safetensors")),
        (Download(url="https://civitai.com/api/download/models/132760"), ("", "")),
        (Download(name="sub/ink.safetensors", kind="lora", size=0), ("lora", "sub/ink.safetensors")),
        (
            Download(name="a.safetensors", kind="lora", sha256="AB" * 32, size=7),
            Wanted("lora", "a.safetensors", None, "ab" * 32, 7),
        ),
    ],
)
def test_an_order_means_a_model_of_the_operators(order: Download, found: Wanted | tuple[str, str]) -> None:
    """Its kind is that of its category, else what the URL or its hub tells; its name that of the URL."""
    result = wanted_of(order)
    assert result.owner is Owner.OPERATOR
    if isinstance(found, Wanted):
        assert result == replace(found, owner=Owner.OPERATOR, field="download")
    else:
        assert (result.kind, result.name, result.size) == (*found, None)


@pytest.mark.parametrize(
    "order",
    [
        Download(kind="lora"),
        Download(name="ink.safetensors"),
        Download(url=HOST + "ink.safetensors"),
        Download(url=HOST + "a.safetensors", kind="../lora"),
        Download(name="../ink.safetensors", kind="lora"),
        Download(name="ink.safetensors", kind="lora", sha256="ab"),
        Download(url="https://civitai.com/nothing-of-theirs", kind="lora", name=".hidden"),
        Download(url="https://huggingface.co/org", kind=None),
    ],
)
def test_an_order_that_says_too_little_or_leads_out_is_invalid(order: Download) -> None:
    """The dispatcher is trusted with hosts, and makes mistakes like anybody."""
    with pytest.raises(InvalidJob):
        wanted_of(order)


def test_a_file_is_what_is_wanted_by_hash_then_by_url_then_by_name() -> None:
    """A file of the name alone is no proof where the order says more."""
    digest, other = sha256(b"a"), sha256(b"b")
    url = HOST + "ink.safetensors"
    entry = Entry(INK, 1, 0, digest, frozenset({url}))
    bare = Entry(INK, 1, 0)
    want = Wanted("lora", "ink.safetensors")
    assert is_here(want, [bare])
    assert is_here(replace(want, sha256=digest), [entry])
    assert not is_here(replace(want, sha256=other), [entry])
    assert not is_here(replace(want, sha256=digest), [bare])
    assert is_here(replace(want, url=url, name=""), [entry])
    assert not is_here(replace(want, url=url), [bare])
    assert not is_here(replace(want, url=HOST + "else.safetensors"), [entry])
    assert not is_here(replace(want, kind="vae"), [entry])
    assert not is_here(replace(want, url="https://huggingface.co/no-file"), [entry])
