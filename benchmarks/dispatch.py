"""What the dispatcher does over HTTP: assignments a second, and how long a node waits for its answer.

``python -m benchmarks.dispatch [--waiting 1000 100000 1000000] [--processes 1 2] [--rates 300] [--seconds 15]``

1,000 nodes hold 25 of 5,000 models each (Zipf 1.0, as the jobs), on a connection each. Whenever a node asks it has
first said that its last job is done, and for each job that was given away another is submitted, so that always the same
number waits: all of that is in the figures. Two measurements: as many as possible, ``--together`` requests at a time;
and nodes that come at random, so many a second as ``--rates`` says, where the time of an answer counts from the moment
at which the node was to ask. The database is a PostgreSQL with its durability on, and everything shares this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from benchmarks.fleet import (
    NODE_TOKEN,
    USER_TOKEN,
    Connection,
    Node,
    Popularity,
    a_fleet,
    catalogue,
    connected,
    documents,
)
from benchmarks.parts import answers, cpu_s, process
from benchmarks.store import a_database, percentile
from dispatcher.documents import new_job
from dispatcher.needs import Catalogue
from dispatcher.store.sql import SqlStore
from worker.clock import SystemClock
from worker.job import Limits
from worker.settings.source import surroundings
from worker.simulators import free_port

NODES = 1_000
PORTION = 50
"""Jobs are submitted in lists of so many."""


@dataclass
class Bench:
    """The fleet at work. ``idle`` are the nodes that are to ask next."""

    nodes: list[Node]
    users: list[Connection]
    popularity: Popularity
    numbers: Iterator[int]
    owed: int = 0
    idle: deque[Node] = field(default_factory=deque)
    took: list[float] = field(default_factory=list)
    assigned: int = 0

    def reset(self) -> None:
        self.took, self.assigned = [], 0

    async def turn(self, node: Node, due: float) -> None:
        """One node brings its job to an end and asks for another; what was given away is replaced."""
        late = time.perf_counter() - due
        await node.finish()
        began = time.perf_counter()
        given = await node.work()
        self.took.append(time.perf_counter() - began + late)
        self.assigned += given
        self.owed += given
        self.idle.append(node)
        if self.owed >= PORTION and self.users:
            self.owed -= PORTION
            user = self.users.pop()
            body = json.dumps(documents(self.popularity, self.numbers, PORTION)).encode()
            await user.post("/jobs", USER_TOKEN, body)
            self.users.append(user)

    async def as_many(self, together: int, seconds: float) -> None:
        """So many requests at a time, each as soon as one before it is answered."""
        over = time.perf_counter() + seconds

        async def line() -> None:
            while (now := time.perf_counter()) < over:
                await self.turn(self.idle.popleft(), now)

        await asyncio.gather(*(line() for _ in range(together)))

    async def at_random(self, rate: float, seconds: float, rng: random.Random) -> None:
        """So many a second, whether those before are answered or not, as long as there are nodes left."""
        due = began = time.perf_counter()
        async with asyncio.TaskGroup() as turns:
            while due < began + seconds:
                due += rng.expovariate(rate)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                while not self.idle:
                    await asyncio.sleep(0.001)
                turns.create_task(self.turn(self.idle.popleft(), due))


async def filled(url: str, waiting: int, popularity: Popularity, numbers: Iterator[int]) -> None:
    store, sources, limits = SqlStore(url, SystemClock()), catalogue(), Limits()
    known = Catalogue(sources)
    await store.open()
    await store.put_models(sources)
    for start in range(0, waiting, 2_000):
        some = documents(popularity, numbers, min(2_000, waiting - start))
        await store.submit([new_job(one, known, limits, user="first") for one in some])
    await store.aclose()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")


@asynccontextmanager
async def a_dispatcher(database: str, log: Path) -> AsyncIterator[tuple[int, int]]:
    """Its port and its process."""
    port = free_port()
    environment = surroundings() | {
        "DISPATCHER_DATABASE_URL": database,
        "DISPATCHER_HOST": "::1",
        "DISPATCHER_PORT": str(port),
        "DISPATCHER_USER_TOKENS": USER_TOKEN,
        "DISPATCHER_NODE_TOKENS": NODE_TOKEN,
        "DISPATCHER_LOG_LEVEL": "warning",
    }
    async with process("-m", "dispatcher", "serve", environment=environment) as running:
        await answers(f"http://[::1]:{port}/live")
        yield port, running.pid


def postgres_cpu_s() -> float:
    """Of all processes of that name, the measured server being the only one on the machine."""
    found = 0.0
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if (path / "comm").read_text().strip() == "postgres":
                found += cpu_s(int(path.name))
    return found


@dataclass
class Shares:
    """Of how many cores each part took how much, in per cent of one."""

    pids: Sequence[int]
    before: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def read(self) -> tuple[float, float, float, float]:
        return (time.perf_counter(), sum(map(cpu_s, self.pids)), postgres_cpu_s(), time.process_time())

    def begin(self) -> None:
        self.before = self.read()

    def told(self) -> str:
        wall, *parts = (now - then for now, then in zip(self.read(), self.before, strict=True))
        names = ("dispatcher", "PostgreSQL", "nodes and users")
        return ", ".join(f"{name} {100 * part / wall:.0f} %" for name, part in zip(names, parts, strict=True))


@contextmanager
def reported(what: str, bench: Bench, shares: Shares) -> Iterator[None]:
    bench.reset()
    shares.begin()
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    p50, p99 = percentile(bench.took, 0.5), percentile(bench.took, 0.99)
    print(
        f"  {what:22}: {bench.assigned / seconds:6,.0f} assignments/s, {len(bench.took) / seconds:6,.0f} answers/s:"
        f" p50 {p50:6.1f} ms, p99 {p99:6.1f} ms; cores: {shares.told()}",
        flush=True,
    )


async def at(waiting: int, asked: argparse.Namespace) -> None:
    with a_database("postgresql") as url, tempfile.TemporaryDirectory() as folder:
        popularity, numbers = Popularity(), itertools.count()
        began = time.perf_counter()
        await filled(url, waiting, popularity, numbers)
        print(f"{waiting:,} jobs wait (after {time.perf_counter() - began:.0f} s)", flush=True)
        for processes in asked.processes:
            print(f" {processes} dispatcher(s)", flush=True)
            async with AsyncExitStack() as stack:
                logs = [Path(folder) / f"{number}.log" for number in range(processes)]
                found = [await stack.enter_async_context(a_dispatcher(url, log)) for log in logs]
                ports, pids = [port for port, _ in found], [pid for _, pid in found]
                nodes = await a_fleet(NODES, ports, popularity)
                users = [await connected(port) for port in ports]
                bench = Bench(nodes, users, popularity, numbers, idle=deque(nodes))
                await measured(bench, Shares(pids), asked)
                for one in [*users, *(node.connection for node in nodes)]:
                    one.close()


async def measured(bench: Bench, shares: Shares, asked: argparse.Namespace) -> None:
    rng = random.Random(11)
    await bench.as_many(max(asked.together), asked.warm)
    for together in asked.together:
        with reported(f"{together} requests at a time", bench, shares):
            await bench.as_many(together, asked.seconds)
    for rate in asked.rates:
        with reported(f"{rate:.0f} nodes a second", bench, shares):
            await bench.at_random(rate, asked.seconds, rng)
    for node in bench.nodes:
        await node.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rates", type=float, nargs="*", default=[300])
    parser.add_argument("--together", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--warm", type=float, default=10.0, help="seconds of work before anything is measured")
    asked = parser.parse_args()
    for waiting in asked.waiting:
        asyncio.run(at(waiting, asked))


if __name__ == "__main__":
    main()
